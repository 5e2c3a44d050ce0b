"""With how much of a demonstration an answer begins: from none of it (exploration) to all but its end (imitation).

A beginning is a class whose keyword-only options are what a recipe gives:

    @beginnings.register("share")
    class Share: ...

Its `lengths` says for each of a visit's next draws how many tokens are given; the policy writes the rest. Those here
know beforehand how much that is; `hints` has those that find it out.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from posttrain.data import Origin
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.registry import Registry
from posttrain.schedules import build_schedule, value_at

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Visit(NamedTuple):
    """A question, by its sample's id, asked at a place of the run: once more in the same round is another visit."""

    question: str
    place: int


@dataclass(frozen=True)
class Begun:
    """What came of an answer that began with `given` of its demonstration's `size` tokens."""

    visit: Visit
    given: int
    size: int
    reward: float


class Beginning(Protocol):
    """How the answers to a question begin.

    `origin`: whose the given tokens are, by which losses tell them apart. `rounds`: how often the answers to a question
    are drawn one part after the other, each part after the ones before have been heard of. `unit`: what lengths are
    counted in; a step ends where a line does. `apart`: answers are compared with those that begin with as much.
    """

    origin: Origin
    rounds: int
    unit: Literal["token", "step"]
    apart: bool

    def lengths(self, visit: Visit, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """How many of a demonstration's `size` units each of the next `draws` begins with. After all of them nothing is
        drawn."""
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


class Forgetful:
    """A beginning that keeps nothing of what came of it for later steps."""

    rounds = 1
    unit: Literal["token", "step"] = "token"
    apart = False

    def hear(self, found: List[Begun], last: bool) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


@beginnings.register("prefix")
class Prefix(Forgetful):
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

    def lengths(self, visit: Visit, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`: the last `count` draws."""
        low = min(value_at(self.low, step), self.high)
        shares = low + (self.high - low) * rng.random(min(self.count, draws))
        return [0] * (draws - len(shares)) + [tokens_of(share, size, self.least) for share in shares]


@beginnings.register("share")
class SameShare(Forgetful):
    """All answers to a question begin with the same share of their demonstration: a number or a schedule.

    `spread`: `none` gives floor(share · |y|) tokens; `binomial` draws their number from Binomial(|y|, share), as UFT
    does (arXiv 2505.16984; sheet 52 has its formula from memory). The given tokens are of origin `hint`. UFT imitates
    them with the β that holds the others to the reference:

        objective: [{name: grpo, origins: [rollout]},
                    {name: nll, origins: [hint], weight: 0.001, reduction: {constant: 1}},
                    {name: kl, origins: [rollout], weight: 0.001, reduction: {constant: 1}}]
    """

    origin = Origin.HINT

    def __init__(self, *, share: Any, spread: Literal["none", "binomial"] = "none") -> None:
        self.share = build_schedule(share, "beginning 'share', option 'share'")
        self.spread = spread

    def lengths(self, visit: Visit, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`."""
        share = value_at(self.share, step)
        if self.spread == "binomial" and size:
            share = rng.binomial(size, min(max(share, 0.0), 1.0)) / size
        return [tokens_of(share, size)] * draws


@beginnings.register("demonstration")
class Whole(Forgetful):
    """`count` of a question's answers are its demonstration: scored, and compared with the others (LUFFY, SRFT).

    LUFFY (arXiv 2504.14945): a group of G - 1 own answers and one demonstration. The tokens are of origin
    `demonstration`, to which the objectives `luffy` and `srft` give a weight of their own. Rewards of length find none
    that was drawn.
    """

    origin = Origin.DEMONSTRATION

    def __init__(self, *, count: Count = 1) -> None:
        self.count = count

    def lengths(self, visit: Visit, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`: the last `count` draws."""
        whole = min(self.count, draws)
        return [0] * (draws - whole) + [size] * whole


@beginnings.register("steps")
class Steps(Forgetful):
    """All answers to a question go on behind the same first steps of its demonstration, 0 to all but the last.

    SRL (arXiv 2510.25992): how many is drawn anew at each visit, each number as likely; here a step is a line. Let the
    answer end with a line, too, and compare it with the demonstration's next one: `stop: ["\\n"]`, reward `next_step`.
    The given tokens are of origin `hint`, from which SRL learns nothing.
    """

    origin = Origin.HINT
    unit = "step"

    def lengths(self, visit: Visit, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`."""
        return [int(rng.integers(max(1, size)))] * draws


def step_ends(tokens: List[int], text: Callable[[List[int]], str]) -> list[int]:
    """How many tokens the first step has, the first two ...: a step ends behind a line break, the last with them all.

    `text` decodes, without end tokens. A token that holds a line break ends the step, and further ones right behind it
    belong to it; so does what comes at the very end and says nothing, such as an end token behind a line break.
    """
    breaks = ["\n" in text([token]) for token in tokens]
    ends = [place + 1 for place, (here, after) in enumerate(pairwise([*breaks, True])) if here and not after]
    while ends and not text(tokens[ends[-1] :]).strip():
        ends.pop()
    return [*ends, len(tokens)] if len(tokens) else []


def check_rounds(beginning: Beginning, draws: int) -> None:
    """Raises `UserError` where the answers to a question cannot be drawn in equal parts."""
    if draws % beginning.rounds:
        raise UserError(f"rollouts.n {draws} must be a multiple of the {beginning.rounds} rounds of 'begin'")
