"""Schedules: numbers that change over a run, as functions of the step or of what was measured.

A recipe gives a number, or names a schedule: `weight: {name: cosine, start: 0.9, end: 0.05, steps: 200}`. A new one is
a function of its options that returns a function of the step:

    @schedule("halving")
    def halving(*, start: float) -> Schedule:
        return lambda step: start * 0.5**step.epoch

One that reads `step.measured` is known when the source is done, of rollouts for example their `reward`: a source whose
weight hangs on it is asked in every step.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from posttrain.data.step import Step
from posttrain.errors import UserError, nearest
from posttrain.registry import Registry

Schedule = Callable[[Step], float]
"""The value in a step; the same on every rank."""
NonNegative = Annotated[float, Field(ge=0)]
Length = Annotated[float, Field(gt=0)]

schedules: Registry[Callable[..., Schedule]] = Registry("schedule")
"""Schedules by the name that a recipe gives them."""
schedule = schedules.register


def build_schedule(spec: Any, what: str) -> float | Schedule:
    """A number as it is, or the schedule that a mapping names. Raises `UserError`, which says `what`, for all else."""
    if isinstance(spec, Mapping):
        name, options = schedules.options(spec)
        return schedules[name](**options)
    if not isinstance(spec, (int, float)) or isinstance(spec, bool) or not math.isfinite(spec):
        raise UserError(
            f"{what} must be a number, or {{name: a schedule, ...}} ({', '.join(schedules)}), found {spec!r}"
        )
    return float(spec)


def value_at(value: float | Schedule, step: Step) -> float:
    """The number that a schedule is in a step."""
    return value(step) if callable(value) else value


@dataclass(frozen=True)
class _Watched(Step):
    """A step that notes in `looked` when somebody looks at what is measured: it may be another when the source is done.

    Whatever comes of the look, the note stays: nobody's default for a lacking metric passes for the value.
    """

    looked: list[str] = field(default_factory=list)

    def __getattribute__(self, name: str) -> Any:
        if name in ("measured", "report"):
            self.looked.append(name)
        return super().__getattribute__(name)


def settled(value: float | Schedule, step: Step) -> float | None:
    """The number of this step before its source is asked; None where it hangs on what is measured, in any way."""
    watched = _Watched(**vars(step))
    try:
        found = value_at(value, watched)
    except Exception:  # of a schedule of the user's, a metric that is not there yet may be a KeyError
        if not watched.looked:
            raise
        return None
    return None if watched.looked else found


@schedule("cosine")
def cosine(*, start: float, end: float, steps: Length | None = None, warmup: NonNegative = 0.0) -> Schedule:
    """From `start` to `end` in half a cosine over `steps`, after a linear rise from 0 to `start` over `warmup`.

    Below 1 both are shares of the run; `steps` null: the rest of it. CHORD's μ (arXiv 2508.11408), Prefix-RFT's
    shortest prefix (arXiv 2507.01679).
    """
    return _falling(start, end, steps, warmup, lambda done: 0.5 * (1 + math.cos(math.pi * done)))


@schedule("linear")
def linear(*, start: float, end: float, steps: Length | None = None, warmup: NonNegative = 0.0) -> Schedule:
    """From `start` to `end` in a straight line; `steps` and `warmup` as in `cosine`."""
    return _falling(start, end, steps, warmup, lambda done: 1 - done)


@schedule("switch")
def switch(*, start: float, end: float, at: NonNegative) -> Schedule:
    """`start` before step `at` (below 1: a share of the run), `end` from there on."""
    return lambda step: start if step.index < _steps(at, step) else end


@schedule("shortfall")
def shortfall(*, of: str, below: float, most: float = 1.0) -> Schedule:
    """How far a metric is `below` a value: max(0, `below` - metric), at most `most`. CHORD's adaptive μ: `of: reward`.

    The metric is the newest: of this step's rollouts, else of the step before. Raises `UserError` in a step before
    which it was never measured.
    """
    return lambda step: min(most, max(0.0, below - _measured(step, of)))


@schedule("complement")
def complement(*, of: Any) -> Schedule:
    """1 minus another schedule, or number."""
    other = build_schedule(of, "schedule 'complement', option 'of'")
    return lambda step: 1 - value_at(other, step)


def _measured(step: Step, name: str) -> float:
    if name not in step.measured:
        known = {key: value for key, value in step.measured.items() if not key.startswith("time/")}
        raise UserError(f"no metric '{name}' is measured before step {step.index + 1}: {nearest(name, known)}")
    return step.measured[name]


def _falling(start: float, end: float, steps: float | None, warmup: float, left: Callable[[float], float]) -> Schedule:
    """`left`: how much of the way is left, when a share of it is done."""

    def value(step: Step) -> float:
        rise = _steps(warmup, step)
        if step.index < rise:
            return start * step.index / rise
        length = _steps(steps, step) if steps is not None else max(1.0, step.total - rise)
        return end + (start - end) * left(min(1.0, (step.index - rise) / length))

    return value


def _steps(count: float, step: Step) -> float:
    return count * step.total if count < 1 else count
