"""Rewards: what an answer is worth to training. Named in recipes, added up, gated.

A reward is one function, of a single attempt or of all attempts at a question:

    @reward("short")
    def short(attempt: Attempt, *, longest: int = 100) -> float:
        return float(attempt.length <= longest)

    @group_reward("majority")
    def majority(attempts: List[Attempt], progress: float) -> list[float]: ...

It has no side effects, and gives a number or a `Score`. What it cannot score it says by an exception or by
`Score.error`: never by a silent 0.
"""

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.registry import Registry
from posttrain.rewards.score import Score

Verify = Callable[[Sample, str], Score]


def _no_verifier(sample: Sample, text: str) -> Score:
    return Score(0.0, error="nothing says what is right: the sample has no 'answer' and its task no verifier")


@dataclass(frozen=True)
class Attempt:
    """One answer to a question: its text, its drawn tokens `[R]` with their log-probs, and how it ended."""

    sample: Sample
    text: str
    tokens: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    finish_reason: Literal["stop", "length"]
    verify: Verify = _no_verifier

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
    def length(self) -> int:
        """Drawn tokens, the end token included."""
        return len(self.tokens)


Reward = Callable[[List[Attempt], float], list[Score]]
"""The scores of all attempts at one question, at a moment of the run in [0, 1)."""

rewards: Registry[Callable[..., Any]] = Registry("reward")
"""Reward functions by the name that a recipe gives them."""
_OF_GROUPS: set[str] = set()
_USUAL = {"weight": 1.0, "since": 0.0, "until": 1.0}
COMMON = (*_USUAL, "gate")
"""Options that every part has."""


def reward(name: str) -> Callable[[Callable[..., Score | float]], Callable[..., Score | float]]:
    """Decorator: a recipe's `reward: name` is this function of one attempt."""
    return rewards.register(name)


def group_reward(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a recipe's `reward: name` is this function of all attempts at a question and the run's progress."""
    _OF_GROUPS.add(name)
    return rewards.register(name)


def build_reward(spec: str | Mapping[str, Any] | List[str | Mapping[str, Any]]) -> Reward:
    """What a recipe says of its reward: a name, `{name: ..., option: value}`, or a list of them to add up.

    Every part also takes `weight` (a factor; 1), `gate` (another reward: where that is 0, this part is), and `since`
    and `until` (shares of the run in which it counts). The value is the weighted sum, each part is kept by its name.
    """
    if not isinstance(spec, (str, Mapping)) and not spec:
        raise UserError("the reward is an empty list; give at least one part, for example 'task'")
    parts = [spec] if isinstance(spec, (str, Mapping)) else list(spec)
    terms = [_build_part({"name": part} if isinstance(part, str) else part) for part in parts]
    names = [name for name, _ in terms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"reward '{twice[0]}' is there twice: give their sum as one weight")

    def total(attempts: List[Attempt], progress: float) -> list[Score]:
        columns = [(name, score(attempts, progress)) for name, score in terms]
        return [_added([(name, scores[row]) for name, scores in columns]) for row in range(len(attempts))]

    return total


def reward_names(spec: str | Mapping[str, Any] | List[str | Mapping[str, Any]]) -> set[str]:
    """The names of all parts of a reward, their gates included."""
    if isinstance(spec, str):
        return {spec}
    if isinstance(spec, Mapping):
        return {str(spec.get("name"))} | (reward_names(spec["gate"]) if "gate" in spec else set())
    return {name for part in spec for name in reward_names(part)}


def _build_part(spec: Mapping[str, Any]) -> tuple[str, Reward]:
    common = {key: spec[key] for key in COMMON if key in spec}
    name, score = _named({key: value for key, value in spec.items() if key not in COMMON})
    weight, since, until = (_number(name, key, common.get(key, usual)) for key, usual in _USUAL.items())
    if not 0 <= since < until <= 1:
        raise UserError(f"reward '{name}': 'since' and 'until' are shares of the run, found {since} and {until}")
    gate = build_reward(common["gate"]) if "gate" in common else None

    def part(attempts: List[Attempt], progress: float) -> list[Score]:
        if not since <= progress < until:
            return [Score(0.0) for _ in attempts]
        found = [replace(one, value=weight * one.value) for one in score(attempts, progress)]
        if gate is None:
            return found
        return [_gated(one, opened) for one, opened in zip(found, gate(attempts, progress), strict=True)]

    return name, part


def _number(name: str, key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"reward '{name}': '{key}' must be a number, found {value!r}")
    return float(value)


def _named(spec: Mapping[str, Any]) -> tuple[str, Reward]:
    name, options = rewards.options(spec)
    function = rewards[name]
    if name not in _OF_GROUPS:
        return name, lambda attempts, progress: [_scored(lambda a: function(a, **options), a) for a in attempts]

    def of_group(attempts: List[Attempt], progress: float) -> list[Score]:
        try:
            found = list(function(attempts, progress, **options))
        except Exception as error:  # whatever it is costs these answers, is counted, and shown with its cause
            return [Score(0.0, error=f"{type(error).__name__}: {error}") for _ in attempts]
        if len(found) != len(attempts):
            raise ValueError(f"reward '{name}' gave {len(found)} scores of {len(attempts)} attempts")
        return [_as_score(value) for value in found]

    return name, of_group


def _scored(function: Callable[[Attempt], Score | float], attempt: Attempt) -> Score:
    try:
        return _as_score(function(attempt))
    except Exception as error:  # whatever it is costs this answer, is counted, and shown with its cause
        return Score(0.0, error=f"{type(error).__name__}: {error}")


def _as_score(value: Score | float) -> Score:
    score = value if isinstance(value, Score) else Score(float(value))
    if score.error is None and not math.isfinite(score.value):
        return replace(score, error=f"the reward is {score.value}")
    return score


def _gated(score: Score, gate: Score) -> Score:
    if gate.error is not None:
        return replace(score, error=gate.error)
    return score if gate.value > 0 else replace(score, value=0.0)


def _added(parts: List[tuple[str, Score]]) -> Score:
    """The sum, with every part by its name; the parts of a part and what explains it are kept too."""
    errors = [score.error for _, score in parts if score.error is not None]
    named: dict[str, float] = {}
    info: dict[str, Any] = {}
    for name, score in parts:
        named |= {name: score.value, **{f"{name}/{key}": value for key, value in score.parts.items()}}
        info |= score.info
    return Score(sum(score.value for _, score in parts), named, info, errors[0] if errors else None)
