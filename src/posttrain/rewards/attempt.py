"""What a reward sees: an answer to a question, and the moment of the run."""

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from posttrain.data import Origin, Sample, Sequence
from posttrain.data.scores import Need, TokenScores
from posttrain.rewards.score import Score

Verify = Callable[[Sample, str], Score]
Ask = Callable[[str | None, List[Sequence], tuple[Need, ...]], list[TokenScores]]
"""`(model name, sequences, needs)` -> scores of each sequence's targets, without gradient; None is the policy as it is.
Every rank must call it as often."""


def _no_verifier(sample: Sample, text: str) -> Score:
    return Score(0.0, error="nothing says what is right: the sample has no 'answer' and its task no verifier")


def _no_models(model: str | None, sequences: List[Sequence], needs: tuple[Need, ...]) -> list[TokenScores]:
    raise RuntimeError("no model can be asked here")


@dataclass(frozen=True)
class Attempt:
    """One answer to a question.

    `text`: what was drawn, decoded. `tokens[R]`, with `logprobs[R]` as the policy drew them; `finish_reason`: how it
    ended. `prompt`: the tokens that were asked with. `drawn[R]` bool: which tokens the policy wrote; None: all of
    them (in a conversation with an environment the others are its replies, whose log-probs are 0). `temperature`: that
    it was drawn at. The first `begun` tokens were given to begin with, as tokens of the origin `begun_as`; `opening` is
    their text, which `text` begins with.
    """

    sample: Sample
    text: str
    tokens: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    finish_reason: Literal["stop", "length"]
    verify: Verify = _no_verifier
    prompt: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    drawn: npt.NDArray[np.bool_] | None = None
    temperature: float = 1.0
    begun: int = 0
    begun_as: Origin = Origin.HINT
    opening: str = ""

    @cached_property
    def verdict(self) -> Score:
        """What the task's verifier says, asked once; `info["extracted"]` is the final answer that it read."""
        return self.verify(self.sample, self.text)

    @property
    def extracted(self) -> str | None:
        """The final answer as the verifier read it, as text."""
        found = self.verdict.info.get("extracted")
        return None if found is None else str(found)

    @property
    def canonical(self) -> str | None:
        """The same in one spelling, by which answers are counted (`info["canonical"]`, where it is another)."""
        return str(self.verdict.info["canonical"]) if "canonical" in self.verdict.info else self.extracted

    @property
    def length(self) -> int:
        """Drawn tokens, the end token included."""
        return len(self.tokens) if self.drawn is None else int(self.drawn.sum())

    @property
    def weighed(self) -> int:
        """Tokens that may be learned from: the drawn ones, and those that it began with."""
        return self.length + self.begun

    @property
    def sequence(self) -> Sequence:
        """Prompt and answer as tokens; the targets are what the policy drew, and what it was given to begin with."""
        own = np.ones(len(self.tokens), bool) if self.drawn is None else self.drawn
        given = np.arange(len(self.tokens)) < self.begun
        origin = np.where(own, Origin.ROLLOUT, np.where(given, self.begun_as, Origin.ENVIRONMENT))
        return Sequence(
            tokens=np.concatenate([self.prompt, self.tokens]).astype(np.int32),
            target=np.concatenate([np.zeros(len(self.prompt), bool), own | given]),
            origin=np.concatenate([np.full(len(self.prompt), Origin.PROMPT), origin]).astype(np.uint8),
            sample_id=self.sample.id,
        )


@dataclass(frozen=True)
class Moment:
    """When a reward is asked for: `progress`, the share of the run that is behind, in [0, 1); whom it may `ask`; how
    many seconds it may take for one attempt (`time_limit`; None: as long as it likes)."""

    progress: float = 0.0
    ask: Ask = _no_models
    time_limit: float | None = None
