"""With how much of a demonstration an answer begins: from none of it (exploration) to all but its end (imitation).

A beginning is a class whose keyword-only options are what a recipe gives:

    @beginnings.register("share")
    class Share: ...

Its `lengths` says for each of a question's next draws how many tokens are given; the policy writes the rest.
"""

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from posttrain.data import Origin
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.registry import Registry
from posttrain.schedules import build_schedule, value_at
from posttrain.sources.item_response import Curve, fit

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Begun:
    """What came of the answers to a question that began with `given` of its demonstration's `size` tokens."""

    question: str
    given: int
    size: int
    reward: float


class Beginning(Protocol):
    """How the answers to a question begin.

    `origin`: whose the given tokens are, by which losses tell them apart. `rounds`: how often the answers to a question
    are drawn one part after the other, each part after the ones before have been heard of.
    """

    origin: Origin
    rounds: int

    def lengths(self, question: str, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """How many of a demonstration's `size` tokens each of the next `draws` begins with, at most `size` - 1."""
        ...

    def hear(self, found: List[Begun], last: bool) -> None:
        """What came of a part (the `last` one?) of all ranks' questions."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; the same on every rank."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


beginnings: Registry[Any] = Registry("beginning")
"""Beginnings by the name that a recipe gives them."""


def build_beginning(spec: str | dict[str, Any]) -> Beginning:
    """The beginning of a name, or of `{name: ..., option: value}`."""
    name, options = beginnings.options(spec)
    found: Beginning = beginnings[name](**options)
    return found


def tokens_of(share: float, size: int, least: int = 0) -> int:
    """floor(share · size), at least `least`, and at least one token fewer than there are; 0 without a demonstration."""
    return max(0, min(max(int(share * size + 1e-9), least), size - 1))


class _Forgetful:
    """A beginning that learns nothing from what came of it."""

    rounds = 1

    def hear(self, found: List[Begun], last: bool) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


@beginnings.register("prefix")
class Prefix(_Forgetful):
    """Prefix-RFT (arXiv 2507.01679): `count` of a question's answers begin with part of its demonstration.

    The share is drawn anew from [`low`, `high`]; `low` falls from 0.95 to 0.05 in a cosine over the run, or is a
    number or a schedule of one's own. L = floor(share · |y|), at least `least`, at most |y| - 1. The given tokens are
    of origin `demonstration`: terms that say no `origins` learn from them with the answer's advantage, like from the
    others.
    """

    origin = Origin.DEMONSTRATION

    def __init__(self, *, low: Any = None, high: Share = 0.95, count: Count = 1, least: int = 0) -> None:
        usual = {"name": "cosine", "start": 0.95, "end": 0.05}
        self.low = build_schedule(usual if low is None else low, "beginning 'prefix', option 'low'")
        self.high, self.count, self.least = high, count, least

    def lengths(self, question: str, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`: the last `count` draws."""
        low = min(value_at(self.low, step), self.high)
        shares = low + (self.high - low) * rng.random(min(self.count, draws))
        return [0] * (draws - len(shares)) + [tokens_of(share, size, self.least) for share in shares]


@beginnings.register("share")
class SameShare(_Forgetful):
    """All answers begin with the same share of their demonstration: a number or a schedule (UFT, arXiv 2505.16984).

    The given tokens are of origin `hint`: give terms `origins`.
    """

    origin = Origin.HINT

    def __init__(self, *, share: Any) -> None:
        self.share = build_schedule(share, "beginning 'share', option 'share'")

    def lengths(self, question: str, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`."""
        return [tokens_of(value_at(self.share, step), size)] * draws


@beginnings.register("hint")
class AdaptiveHint:
    """SEELE (arXiv 2509.06923): hints as long as it takes for a share `target` of a question's answers to be right.

    The answers to a question are drawn in `rounds` parts. After each a curve of accuracy over hint rate is fitted to
    the question's own parts of this step (and to (0, 0) and (1, 1), where these were not tried), and inverted for the
    next rate. The first rate of a question is that of nearly its whole demonstration, later the last one used at its
    last visit. Rates are kept as they were used, in whole tokens. The given tokens are of origin `hint`: the paper
    learns nothing from them by the advantage, and imitates them with a weight of 0.001:

        objective: [{name: grpo, origins: [rollout], reduction: {constant: 64}},
                    {name: nll, origins: [hint], weight: 0.001, reduction: {constant: 64}}]
    """

    origin = Origin.HINT

    def __init__(self, *, rounds: Count = 4, target: Annotated[float, Field(gt=0, lt=1)] = 0.5) -> None:
        self.rounds, self.target = rounds, target
        self._last: dict[str, float] = {}
        self._tried: dict[str, list[tuple[float, float]]] = {}

    def lengths(self, question: str, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`."""
        if size < 2:
            return [0] * draws
        tried = self._tried.get(question, [])
        rate = self._next(tried) if tried else self._last.get(question, (size - 1) / size)
        return [max(0, min(round(rate * size), size - 1))] * draws

    def hear(self, found: List[Begun], last: bool) -> None:
        """See `Beginning.hear`."""
        for begun in found:
            if begun.size:
                self._tried.setdefault(begun.question, []).append((begun.given / begun.size, begun.reward))
        if last:
            self._last |= {question: tried[-1][0] for question, tried in self._tried.items()}
            self._tried = {}

    def state(self) -> dict[str, Any]:
        """The last rate of every question; between steps nothing else is known."""
        return {"last": dict(self._last)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._last, self._tried = dict(state["last"]), {}

    def _next(self, tried: List[tuple[float, float]]) -> float:
        curve: Curve = fit(with_anchors(tried))
        return curve.rate(self.target)


def with_anchors(tried: List[tuple[float, float]]) -> list[tuple[float, float]]:
    """With (0, 0) and (1, 1), where these rates have not been tried."""
    rates = {rate for rate, _ in tried}
    return [*tried, *((end, end) for end in (0.0, 1.0) if end not in rates)]


def check_rounds(beginning: Beginning, draws: int) -> None:
    """Raises `UserError` where the answers to a question cannot be drawn in equal parts."""
    if draws % beginning.rounds:
        raise UserError(f"rollouts.n {draws} must be a multiple of the {beginning.rounds} rounds of 'begin'")
