"""What every engine takes and gives: `Prompt`, `Sampling`, `Completion`, `Engine`."""

from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ThinkingRules:
    """What is done to the token that ends thinking; nothing behind it.

    `stop`: the text of that token. Of one that a tokenizer cuts into several, the first is scaled, and replaced.

    `temperature` T of that token alone, among the logits u of a step (TS, arXiv 2505.07961, as reconstructed from its
    abstract): above 1 thinking ends earlier, below 1 later. `reference` "max": u_stop = m + (u_stop - m) / T with
    m = max u, the same whatever is added to all logits; "raw": u_stop / T, which is not. Filters come afterwards.

    `budget` (s1's budget forcing, arXiv 2501.19393): after so many tokens the stop is forced, and `cue` behind it. The
    first `continuations` stops that are drawn before are replaced by `continuation`.
    """

    stop: str = "</think>"
    temperature: float = 1.0
    reference: Literal["max", "raw"] = "max"
    budget: int | None = None
    cue: str = ""
    continuations: int = 0
    continuation: str = "Wait"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. Filters apply after the temperature, in the
    order top-k, top-p, min-p (as transformers does). `stop` strings end an answer and stay in its text; `stop_tokens`
    come on top of the model's own end-of-turn tokens. `thinking` is about the end of thinking. `seed` names the random
    stream: the same (seed, prompt key or index, sample index) draws the same answer whatever else is in the batch, up
    to floating-point ties.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    thinking: ThinkingRules | None = None
    seed: int = 0

    @property
    def untouched(self) -> bool:
        """Is the policy's own distribution drawn from, with neither temperature nor filters?"""
        return self.temperature == 1 and self.top_p == 1 and not self.top_k and not self.min_p


@dataclass(frozen=True)
class Prompt:
    """Tokens `[T]` to continue: a question, and behind it what the answer is forced to begin with.

    `key` names its random stream (31 bits); None: its place in the call. `samples`: the numbers of its samples that are
    drawn, ascending; None: 0 to n - 1.
    """

    tokens: npt.NDArray[np.int32]
    key: int | None = None
    samples: tuple[int, ...] | None = None

    def numbers(self, n: int) -> List[int]:
        """The samples that a call for `n` draws."""
        return range(n) if self.samples is None else self.samples


@dataclass(frozen=True)
class Completion:
    """One drawn answer.

    `tokens[R]` int32 are the drawn tokens, the end-of-turn token included when it was drawn; a forced prefix is not
    among them. `logprobs[R]`: of the untempered policy (float32 log-softmax of the raw logits).
    `sampling_logprobs[R]`: of the distribution that was drawn from; 0 of forced tokens, which are certain, and of a
    continuation's first token that of the stop in whose place it stands. `finish_reason`: "stop" (end-of-turn token or
    stop string) or "length" (ran out of `max_new_tokens` or of context). `text`: decoded without special end tokens.
    `drawn[R]` bool: in a conversation with an environment the tokens that the policy drew, None: all; the others are
    the environment's, with log-probs of 0.
    """

    prompt: int
    sample: int
    tokens: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    sampling_logprobs: npt.NDArray[np.float32]
    finish_reason: Literal["stop", "length"]
    text: str
    drawn: npt.NDArray[np.bool_] | None = None


class Engine(Protocol):
    """Draws answers. Completions come back ordered by prompt, then by sample."""

    def generate(self, prompts: List[Prompt], n: int, sampling: Sampling) -> list[Completion]:
        """`n` completions for each prompt, or those of its `samples` where it names them."""
        ...
