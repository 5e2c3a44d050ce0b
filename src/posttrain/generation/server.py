"""The server engine: answers drawn by any OpenAI-compatible server (vLLM, SGLang, `transformers serve` ...)."""

import time
import warnings
from collections.abc import Callable
from collections.abc import Sequence as List
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import takewhile
from typing import Any, TypeVar

import httpx
from transformers import PreTrainedTokenizerBase

from posttrain.data import Message
from posttrain.errors import UserError
from posttrain.generation.dialects import Dialect, Wanted, completion, prompt_text, request
from posttrain.generation.engine import Completion, Prompt, Sampling
from posttrain.generation.sampling import check, stream

T = TypeVar("T")

_CONCURRENCY: dict[Dialect, int] = {"vllm": 64, "openai": 16, "transformers": 1}
"""Requests at once. `transformers serve` answers one after the other from one global random state."""


class ServerEngine:
    """Draws answers from the server at `base_url` (with its `/v1`), which serves `model` under that name.

    `tokenizer` must be the served model's. `dialect` None asks the server once. `timeout` in seconds bounds one
    request; dropped connections, time-outs, 429 and 5xx are tried again `retries` times, each after twice the wait of
    the one before. `processed_logprobs`: the server's log-probs are of the distribution that it draws from (vLLM's
    `--logprobs-mode processed_logprobs`), not of the policy. `progress` is called with the number of tokens of the
    answers as they arrive, `drawn` with the answers.

    `exact` tells, after a call, whether the server returned the token ids that it drew: without them answers are good
    for reading and scoring, but not for training on. Servers that return no ids leave special tokens out of the text,
    and plain `openai` ones stop strings too.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        api_key: str | None = None,
        dialect: Dialect | None = None,
        concurrency: int | None = None,
        timeout: float = 600.0,
        retries: int = 4,
        first_wait: float = 0.5,
        processed_logprobs: bool = False,
        progress: Callable[[int], None] | None = None,
        drawn: Callable[[Completion], None] | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.tokenizer = tokenizer
        self.dialect = dialect
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.first_wait = first_wait
        self.processed_logprobs = processed_logprobs
        self.progress = progress
        self.drawn = drawn
        self.exact: bool | None = None
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=10.0), limits=limits)

    def generate(self, prompts: List[Prompt], n: int, sampling: Sampling) -> list[Completion]:
        """`n` completions for each prompt, ordered by prompt, then by sample.

        Log-probs are NaN where the server gives none. The same seed gives the same answers as far as the server keeps
        to it. Raises `UserError` when the server cannot be reached, refuses, serves another model or draws nothing.
        """
        for index, prompt in enumerate(prompts):
            if not len(prompt.tokens):
                raise UserError(f"prompt {index} has no tokens; a prompt needs at least one")

        def body(prompt: Prompt, dialect: Dialect) -> dict[str, Any]:
            tokens = prompt.tokens.tolist()
            return {"prompt": tokens if dialect == "vllm" else prompt_text(self.tokenizer, tokens), "logprobs": 1}

        keys = [index if prompt.key is None else prompt.key for index, prompt in enumerate(prompts)]
        return self._all("completions", prompts, keys, [prompt.numbers(n) for prompt in prompts], body, n, sampling)

    def check(self) -> Dialect:
        """The server's dialect, after one token. Raises `UserError` when it is out of reach or refuses the model."""
        if self.dialect is None:
            return self._known_dialect()
        wanted = Wanted(self.model, 1, 0, Sampling(max_new_tokens=1), self.tokenizer)
        self._post("completions", request(self.dialect, wanted) | {"prompt": "a", "logprobs": 1})
        return self.dialect

    def chat(self, conversations: List[List[Message]], n: int, sampling: Sampling) -> list[Completion]:
        """`n` answers to each conversation, rendered by the server's own template: for teachers and judges."""

        def body(conversation: List[Message], dialect: Dialect) -> dict[str, Any]:
            return {"messages": list(conversation)} | ({"logprobs": True} if dialect == "vllm" else {})

        numbers = [range(n)] * len(conversations)
        return self._all("chat/completions", conversations, range(len(conversations)), numbers, body, n, sampling)

    def _all(
        self,
        path: str,
        asked: List[T],
        keys: List[int],
        numbers: List[List[int]],
        body: Callable[[T, Dialect], dict[str, Any]],
        n: int,
        sampling: Sampling,
    ) -> list[Completion]:
        check(sampling)
        if sampling.thinking is not None:
            raise UserError(
                "no server takes the rules of 'thinking': draw in process (the local engine), or leave it out"
            )
        if n < 1:
            raise UserError(f"{n} samples of each prompt were asked for; at least 1 is needed")
        if not asked:
            return []
        dialect = self._known_dialect()
        self.exact = True
        completions: list[Completion] = []
        pool = ThreadPoolExecutor(self.concurrency or _CONCURRENCY[dialect])
        try:
            futures = [
                pool.submit(self._samples, path, body(one, dialect), index, key, wanted, sampling)
                for index, (one, key, wanted) in enumerate(zip(asked, keys, numbers, strict=True))
            ]
            for future in as_completed(futures):
                for answer, exact in future.result():
                    self.exact = self.exact and exact
                    completions.append(answer)
                    if self.drawn is not None:
                        self.drawn(answer)
                    if self.progress is not None:
                        self.progress(len(answer.tokens))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return sorted(completions, key=lambda completion: (completion.prompt, completion.sample))

    def _samples(
        self, path: str, body: dict[str, Any], prompt: int, key: int, numbers: List[int], sampling: Sampling
    ) -> list[tuple[Completion, bool]]:
        """The samples of one prompt. A server that returns fewer than asked for is asked again for the rest.

        Sample i has the seed of the first plus i, which is also how vLLM seeds the samples of one request: the same are
        drawn however many a request brings.
        """
        answers: list[tuple[Completion, bool]] = []
        first = int(stream(sampling.seed, key, 0).integers(2**31))
        aborted = 0
        left = list(numbers)
        while left:
            count = next((i for i, number in enumerate(left) if number != left[0] + i), len(left))  # without a gap
            wanted = Wanted(self.model, count, first + left[0], sampling, self.tokenizer, self.processed_logprobs)
            reply = self._post(path, request(self._known_dialect(), wanted) | body)
            # What a pause cuts short is drawn again, and so are those behind it: a sample's place is its seed.
            found = reply.get("choices") or []
            choices = list(takewhile(lambda choice: choice.get("finish_reason") != "abort", found))
            aborted += len(choices) < len(found)
            if not choices and (not found or aborted > self.retries):
                raise UserError(
                    f"the server at {self.base_url} returned no answer to prompt {prompt}: {len(left)} of "
                    f"{len(numbers)} samples are missing; it said {str(reply)[:500]}"
                )
            self._check_model(reply)
            self._check_prompt_length(reply, body, prompt)
            answers += [completion(choice, prompt, left.pop(0), wanted) for choice in choices[:count]]
        return answers

    def _known_dialect(self) -> Dialect:
        """The server's dialect, found out with one request of one token at the first call."""
        if self.dialect is None:
            wanted = Wanted(self.model, 1, 0, Sampling(max_new_tokens=1), self.tokenizer)
            ids = self.tokenizer.encode("a", add_special_tokens=False)
            answer = self._send("completions", request("vllm", wanted) | {"prompt": ids, "logprobs": 1})
            if answer.is_success:
                self.dialect = "vllm"
            elif "Unexpected fields" in answer.text:
                self.dialect = "transformers"
            elif answer.status_code in (400, 422) or (answer.status_code == 404 and "model" not in answer.text):
                self.dialect = "openai"  # a 404 that names no model: only `chat` may work
            else:
                raise self._refused("completions", answer)
        return self.dialect

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._send(path, body)
        if not answer.is_success:
            raise self._refused(path, answer)
        try:
            reply: dict[str, Any] = answer.json()
        except ValueError:
            raise UserError(
                f"{self.base_url}/{path} answered with something that is not JSON: {answer.text[:200]}"
            ) from None
        return reply

    def _send(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """One request, tried again while the server is out of reach or busy."""
        url = f"{self.base_url}/{path}"
        wait = self.first_wait
        for attempt in range(self.retries + 1):
            try:
                answer = self._client.post(url, json=body)
                if answer.status_code != 429 and answer.status_code < 500:
                    return answer
                fault = f"status {answer.status_code}: {answer.text[:200]}"
            except httpx.HTTPError as error:
                fault = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(wait)
                wait = min(2 * wait, 30.0)
        raise UserError(
            f"no answer from {url} in {self.retries + 1} tries ({fault}); "
            "is the server running, and is this its address?"
        )

    def _refused(self, path: str, answer: httpx.Response) -> UserError:
        return UserError(
            f"the server refused {self.base_url}/{path} for model '{self.model}' with status {answer.status_code}: "
            f"{answer.text[:500]}"
        )

    def _check_model(self, reply: dict[str, Any]) -> None:
        served = str(reply.get("model") or self.model)
        if not served.startswith(self.model):
            raise UserError(f"the server at {self.base_url} answered as model '{served}', not '{self.model}'")

    def _check_prompt_length(self, reply: dict[str, Any], body: dict[str, Any], prompt: int) -> None:
        if not isinstance(body.get("prompt"), str):
            return
        read = (reply.get("usage") or {}).get("prompt_tokens")
        sent = len(self.tokenizer.encode(body["prompt"]))
        if read is not None and read != sent:
            warnings.warn(
                f"the server at {self.base_url} read prompt {prompt} as {read} tokens, but it has {sent} here: its "
                "tokenizer is another one",
                stacklevel=2,
            )
