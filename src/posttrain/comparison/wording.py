"""How a comparison's numbers are written: by the unit of the measure, differences with their sign."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from posttrain.comparison.measures import limits
from posttrain.comparison.result import BudgetResult, Contrast, Estimate, Measure
from posttrain.recipe.yaml_text import inline
from posttrain.reporting.formats import duration, number, percent, points

STAGES = {"test": "In distribution", "longer": "Longer problems", "kept": "Kept from before"}
"""What the evaluations of the supervised recipes measure; others are called by their stage's name."""

_SHORT = {"kl": "KL to the start", "entropy": "Entropy", "seconds": "Time", "log_likelihood": "Log-likelihood"}


def stage_title(stage: str) -> str:
    """What an evaluation is called."""
    return STAGES.get(stage, stage.replace("_", " ").capitalize())


def title(measure: Measure) -> str:
    """What a measure is called above a plot or a column: an accuracy by what was asked alone."""
    if measure.metric == "accuracy":
        return stage_title(measure.stage)
    short = _SHORT.get(measure.metric, measure.label.partition(",")[0])
    return short[0].upper() + short[1:]


def place(measure: Measure, among: Sequence[Measure]) -> str:
    """The stage beside a measure's title, where the title does not tell it from others `among` them; else empty."""
    alone = sum(other.metric == measure.metric for other in among) == 1
    return "" if alone or measure.metric == "accuracy" else stage_title(measure.stage).lower()


def value_text(measure: Measure, value: float) -> str:
    """The value of a measure: `73.3 %`, `48 s`, `0.3029`."""
    if measure.unit == "points":
        return percent(value)
    if measure.unit == "nats":
        return number(float(f"{value:.3g}"))
    if measure.unit == "tokens" and value >= 1000:
        return number(round(value))
    return duration(value) if measure.unit == "s" else number(value)


def difference_text(measure: Measure, value: float) -> str:
    """A difference, signed and without its unit: `+3.3`, `−0.0412`."""
    if measure.unit in ("points", "s"):
        text = points(value / (1 if measure.unit == "points" else 100))
        return "0.0" if text in ("+0.0", "−0.0") else text
    text = number(float(f"{value:.3g}") if abs(value) < 1000 else round(value))
    return f"+{text}" if value > 0 else text


def unit(measure: Measure) -> str:
    """The unit behind a difference, with its space; empty where there is none."""
    return f" {measure.unit}" if measure.unit else ""


def ends(measure: Measure, found: Estimate) -> tuple[float, float] | None:
    """The interval of an estimate, cut to what the measure can be; None where nothing is known about it.

    Student's t of two seeds knows nothing of a share's ends.
    """
    if found.low is None or found.high is None:
        return None
    least, most = limits(measure)
    return max(found.low, least), min(found.high, most)


def estimate_span(measure: Measure, found: Estimate) -> str:
    """The interval of an estimate, `59.3 to 89.1`; empty where nothing is known about it, or where it has no width."""
    both = ends(measure, found)
    if both is None or both[0] == both[1]:
        return ""
    return " to ".join(value_text(measure, end).removesuffix("\u202f%") for end in both)


def contrast_span(measure: Measure, found: Contrast) -> str:
    """The interval of a difference, `−5.9 to +11.4`; empty where nothing is known about it."""
    if found.low is None or found.high is None:
        return ""
    return " to ".join(difference_text(measure, end) for end in (found.low, found.high))


def effect_text(
    measure: Measure, effect: float, interval: Sequence[float | None], *, minus: str | None, over: str | None
) -> tuple[str, str]:
    """A claim's effect and its interval: `+3.3 points`, `−1.2 to +7.8` (empty where nothing is known about it).

    It is a difference where there is a `minus`, and a share of the gap from there where there is an `over`.
    """
    write = percent if over else partial(difference_text if minus else value_text, measure)
    ends = [end for end in interval if end is not None and math.isfinite(end)]
    span = " to ".join(map(write, ends)) if len(ends) == 2 else ""
    return write(effect) + (unit(measure) if minus and not over else ""), span


def settings(given: Mapping[str, Any]) -> str:
    """Overrides as on the command line: `objective=dft lr=0.001 imitation={name: cosine}`."""
    return " ".join(f"{key}={inline(value)}" for key, value in given.items())


def budget_text(budget: BudgetResult) -> str:
    """What every arm could spend: `150 steps`."""
    if budget.amount is None:
        return "as long as the recipes say"
    if budget.kind == "seconds":
        return f"{duration(budget.amount)} of training"
    return f"{number(budget.amount)} {'input tokens' if budget.kind == 'tokens' else budget.kind}"


def p_text(p_value: float) -> str:
    """A p-value: `0.042`, `< 0.001`."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"
