"""What one completion request looks like to each kind of OpenAI-compatible server, and how its answer is read."""

import json
from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from posttrain.errors import UserError
from posttrain.generation.engine import Completion, Sampling
from posttrain.generation.stopping import answer_text, decode

Dialect = Literal["vllm", "transformers", "openai"]
"""`vllm`: token ids in and out, all filters, log-probs (vLLM; SGLang, as far as it returns ids). `transformers`:
`transformers serve`. `openai`: the plain legacy protocol."""


@dataclass(frozen=True)
class Wanted:
    """What one request asks for: `n` samples from `seed`. `processed`: see `ServerEngine.processed_logprobs`."""

    model: str
    n: int
    seed: int
    sampling: Sampling
    tokenizer: PreTrainedTokenizerBase
    processed: bool = False

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer, as far as this side knows them."""
        eos = self.tokenizer.eos_token_id
        return frozenset({*self.sampling.stop_tokens, *([] if eos is None else [int(eos)])})


def request(dialect: Dialect, wanted: Wanted) -> dict[str, Any]:
    """The body of a request, all but its prompt. Raises `UserError` for rules that `dialect` cannot express."""
    sampling = wanted.sampling
    body: dict[str, Any] = {"model": wanted.model, "max_tokens": sampling.max_new_tokens, "seed": wanted.seed}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if dialect == "transformers":
        # It ignores `n`, and `temperature` on models whose own configuration is greedy: all is said in this one field.
        return body | {"generation_config": json.dumps(_generation_config(wanted))}
    body |= {"n": wanted.n, "temperature": sampling.temperature, "top_p": sampling.top_p}
    if dialect == "vllm":
        return body | {
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,  # the model's own configuration would otherwise set one
            "stop_token_ids": list(sampling.stop_tokens),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
    for field in ("top_k", "min_p", "stop_tokens"):
        if getattr(sampling, field):
            raise UserError(f"sampling.{field} is set, but servers of dialect 'openai' know no such rule; leave it out")
    return body


def _generation_config(wanted: Wanted) -> dict[str, Any]:
    sampling = wanted.sampling
    config: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        config |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        config |= {"min_p": sampling.min_p} if sampling.min_p else {}
    if sampling.stop_tokens:
        config["eos_token_id"] = sorted(wanted.ends)
    return config


def prompt_text(tokenizer: PreTrainedTokenizerBase, tokens: List[int]) -> str:
    """Text that servers without token ids read as `tokens`, a leading token that they add themselves left out."""
    text = decode(tokenizer, tokens)
    shorter = decode(tokenizer, tokens[1:])
    if tokenizer.encode(text) != list(tokens) and tokenizer.encode(shorter) == list(tokens):
        return shorter
    return text


def completion(choice: Mapping[str, Any], prompt: int, sample: int, wanted: Wanted) -> tuple[Completion, bool]:
    """Read one of a response's `choices`; also says whether its tokens are those that were drawn.

    Without token ids the text is tokenised again, which may give other tokens than were drawn: then, and where the
    server gives no log-probs, these are NaN. A server's log-probs are taken for the policy's own (vLLM's default) or,
    where they are `processed`, for those of the sampling distribution; for both where both are the same. The others are
    NaN.
    """
    reason: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
    found = choice.get("logprobs") or {}
    message = choice.get("message") or {}
    text = str(choice.get("text") or message.get("content") or "")
    tokens = _token_ids(choice, found)
    exact = tokens is not None
    if tokens is None:
        tokens = wanted.tokenizer.encode(text, add_special_tokens=False)
        eos = wanted.tokenizer.eos_token_id
        if reason == "stop" and eos is not None and not any(text.endswith(stop) for stop in wanted.sampling.stop):
            tokens = [*tokens, int(eos)]
    else:
        text = answer_text(wanted.tokenizer, tokens, wanted.ends)
    logprobs = _logprobs(choice, found, len(tokens)) if exact else np.full(len(tokens), np.nan, np.float32)
    sampling = wanted.sampling
    unknown = np.full(len(tokens), np.nan, np.float32)
    own, drawn_from = (unknown, logprobs) if wanted.processed else (logprobs, unknown)
    if sampling.temperature == 0 and exact:
        drawn_from = np.zeros(len(tokens), np.float32)
    read = Completion(
        prompt=prompt,
        sample=sample,
        tokens=np.array(tokens, dtype=np.int32),
        logprobs=logprobs if sampling.untouched else own,
        sampling_logprobs=logprobs if sampling.untouched else drawn_from,
        finish_reason=reason,
        text=text,
    )
    return read, exact


def _token_ids(choice: Mapping[str, Any], logprobs: Mapping[str, Any]) -> list[int] | None:
    if choice.get("token_ids") is not None:
        return [int(token) for token in choice["token_ids"]]
    named = logprobs.get("tokens") or [entry.get("token", "") for entry in logprobs.get("content") or ()]
    if named and all(str(name).startswith("token_id:") for name in named):
        return [int(str(name).removeprefix("token_id:")) for name in named]
    return None


def _logprobs(choice: Mapping[str, Any], found: Mapping[str, Any], length: int) -> npt.NDArray[np.float32]:
    values = found.get("token_logprobs") or [entry.get("logprob") for entry in found.get("content") or ()]
    if len(values) != length:
        return np.full(length, np.nan, np.float32)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)
