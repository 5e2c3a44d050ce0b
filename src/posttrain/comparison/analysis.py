"""From finished runs to estimates, differences with intervals and corrected p-values, and plain sentences."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from posttrain.comparison.measures import CONTINUAL, COSTS, IMITATED, SHOWN, limits, measure
from posttrain.comparison.result import ArmResult, ArmRun, Contrast, Estimate, Family, Measure
from posttrain.comparison.spec import BASE
from posttrain.evaluation import hierarchical_gap_recovered
from posttrain.evaluation.statistics import (
    Difference,
    Interval,
    cohens_d,
    hierarchical_bootstrap,
    hierarchical_difference,
    holm,
    of_shares,
    wilson,
)

LEVEL = 0.95
ALL_PAIRS_UP_TO = 6
"""Arms: ten of them have 45 pairs in each measure, which nobody reads."""

Table = list[list[float]]
"""`[S, P]`: a row for each seed."""


def measures_of(arms: Sequence[ArmResult], wanted: Iterable[str] = ()) -> list[Measure]:
    """What the arms are compared by, evaluations before costs, and the `wanted` ones besides."""
    found = {name for arm in arms for run in arm.runs for name in run.values}
    trained = dict.fromkeys(stage for arm in arms for run in arm.runs for stage in run.curves)
    evaluated = dict.fromkeys(stage for arm in arms for run in arm.runs for stage in run.shares)
    drawn = sorted({name.partition(".")[2] for name in found if "pass@" in name and not name.endswith("pass@1")})
    names = [f"{stage}.{metric}" for stage in evaluated for metric in (SHOWN[0], *drawn, *SHOWN[1:], *CONTINUAL)]
    names += [f"{stage}.{metric}" for stage in trained for metric in COSTS]
    names += [name for stage in trained if len(_seen(arms, name := f"{stage}.{IMITATED}")) > 1]
    kept = dict.fromkeys(name for name in (*names, *wanted) if name in found)
    return [measure(*name.split(".", 1)) for name in kept]


def _seen(arms: Sequence[ArmResult], name: str) -> set[float]:
    return {run.values[name] for arm in arms for run in arm.runs if name in run.values}


def estimates(arms: Sequence[ArmResult], measures: Sequence[Measure]) -> list[Estimate]:
    """Mean and interval of every measure of every arm that has it."""
    found = [_estimate(arm, each) for each in measures for arm in arms]
    return [each for each in found if each is not None]


def contrasts(arms: Sequence[ArmResult], base: ArmResult | None, measures: Sequence[Measure]) -> list[Contrast]:
    """Every arm minus the first; all pairs, of a few arms; every arm minus the start. Holm within each of the three."""
    pairs: dict[Family, list[tuple[ArmResult, ArmResult]]] = {"first": [(arm, arms[0]) for arm in arms[1:]]}
    if 2 < len(arms) <= ALL_PAIRS_UP_TO:
        pairs["pairs"] = [(later, earlier) for earlier, later in combinations(arms, 2)]
    if base is not None:
        pairs["base"] = [(arm, base) for arm in arms]
    return [found for each in measures for family in pairs for found in _family(family, pairs[family], each)]


def difference(arm: ArmResult, minus: ArmResult, each: Measure) -> Difference | None:
    """`arm` minus `minus`, over the seeds and problems that both have; None where they have none in common.

    What was run once (the start) is set against every seed of the other. `effect` is over problems, or over seeds where
    the measure has no problems.
    """
    numbers = _numbers((arm, minus), each)
    if numbers is None:
        return None
    (ours, theirs), problems = numbers
    rng = np.random.default_rng(0)  # the same interval for the same runs, whatever else is compared
    found = hierarchical_difference(theirs, ours, rng, level=LEVEL)
    if problems:
        least, most = limits(each)
        return replace(found, interval=of_shares(found.interval, problems, (least - most, most - least)))
    flat = [np.ravel(side) for side in (theirs, ours)]
    return Difference(found.interval, found.p_value, found.test, cohens_d(*flat), 0, len(ours))


def change_of_difference(
    arm: ArmResult, minus: ArmResult, than: tuple[ArmResult, ArmResult], each: Measure
) -> Interval | None:
    """(`arm` minus `minus`) minus the difference of the other two, over the seeds and problems that all four have.

    Seeds, problems and the start as in `difference`; None where the four have none in common.
    """
    numbers = _numbers((arm, minus, *than), each)
    if numbers is None:
        return None
    sides, problems = numbers
    ours, theirs, first, second = (np.asarray(side) for side in sides)
    found = hierarchical_bootstrap(ours - theirs - (first - second), np.random.default_rng(0), level=LEVEL)
    if not problems:
        return found
    least, most = limits(each)
    return of_shares(found, problems, (2 * (least - most), 2 * (most - least)))


def recovered(arm: ArmResult, minus: ArmResult, over: ArmResult, each: Measure) -> Interval | None:
    """The share of the gap from `minus` to `over` that `arm` closes, see `hierarchical_gap_recovered`.

    Seeds, problems and the start as in `difference`; None where the three have none in common.
    """
    numbers = _numbers((arm, minus, over), each)
    if numbers is None:
        return None
    (ours, low, high), problems = numbers
    found = hierarchical_gap_recovered(ours, low, high, level=LEVEL)
    if found.low < found.high or not problems:
        return found
    open_to = wilson(0, problems, level=LEVEL).high / float(np.mean(high) - np.mean(low))
    return Interval(found.estimate, found.low - open_to, found.high + open_to, found.level)


def value(arm: ArmResult, each: Measure) -> Interval | None:
    """The mean of a measure over an arm's seeds (and problems); None where it has no such number."""
    runs = [run for run in arm.runs if each.name in run.values]
    if not runs:
        return None
    rng = np.random.default_rng(0)
    if _has_shares(each, runs):
        (table,) = _tables([(run,) for run in runs], each.stage)
        if not table[0]:
            return None
        return of_shares(hierarchical_bootstrap(table, rng, level=LEVEL), len(table[0]), limits(each))
    return hierarchical_bootstrap([[run.values[each.name]] for run in runs], rng, level=LEVEL)


def sentences(found: Sequence[Contrast], measures: Sequence[Measure]) -> list[str]:
    """What a reader wants to know first: quality and drift of each arm against the first, then its time."""
    told = [
        each.name
        for each in measures
        if each.metric in ("accuracy", "forgetting", "kl", "seconds") or "@" in each.metric
    ]
    return [each.sentence for each in found if each.family == "first" and each.metric in told]


def _has_shares(each: Measure, runs: Iterable[ArmRun]) -> bool:
    return each.has_problems and all(each.stage in run.shares for run in runs)


def _estimate(arm: ArmResult, each: Measure) -> Estimate | None:
    interval = value(arm, each)
    if interval is None:
        return None
    numbers = [run.values[each.name] for run in arm.runs if each.name in run.values]
    spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    ends = interval.to_json()
    return Estimate(each.name, arm.name, interval.estimate, ends["low"], ends["high"], spread, len(numbers))


def _family(family: Family, pairs: Iterable[tuple[ArmResult, ArmResult]], each: Measure) -> list[Contrast]:
    found = [(arm, minus, difference(arm, minus, each)) for arm, minus in pairs]
    known = [(arm.name, minus.name, one) for arm, minus, one in found if one is not None]
    adjusted = holm([one.p_value for *_, one in known]).tolist() if known else []
    return [
        _contrast(family, arm, minus, each, one, p, len(known))
        for (arm, minus, one), p in zip(known, adjusted, strict=True)
    ]


def _contrast(
    family: Family, arm: str, minus: str, each: Measure, found: Difference, adjusted: float, compared: int
) -> Contrast:
    ends = found.interval.to_json()
    return Contrast(
        metric=each.name,
        arm=arm,
        minus=minus,
        family=family,
        estimate=found.interval.estimate,
        low=ends["low"],
        high=ends["high"],
        p_value=found.p_value,
        p_adjusted=adjusted,
        test=found.test,
        effect=found.effect if math.isfinite(found.effect) else None,
        problems=found.problems,
        seeds=found.seeds,
        significant=found.significant and adjusted < 1 - LEVEL,
        sentence=sentence(arm, minus, each, found, adjusted, compared),
    )


def sentence(arm: str, minus: str, each: Measure, found: Difference, adjusted: float, compared: int = 1) -> str:
    """The difference in words: how much, how sure, and whether it survives the correction for `compared` of them."""
    interval = found.interval
    if not math.isfinite(interval.low):
        gap = _number(interval.estimate, each, sign=True)
        return f"{_place(each)}: {arm} minus {minus} is {gap} (one seed: no interval)"
    if not found.significant:
        span = f"95 % interval {_span(interval, each)}, p = {found.p_value:.2g}"
        gap = _number(interval.estimate, each, sign=True)
        return f"{_place(each)}: no significant difference between {arm} and {minus} ({gap}, {span})"
    size = Interval(abs(interval.estimate), interval.low, interval.high, interval.level)
    if interval.estimate < 0:
        size = Interval(size.estimate, -interval.high, -interval.low, interval.level)
    told = (
        f"{_place(each)}: {arm} is {_number(size.estimate, each)} {_word(interval.estimate, each)} than {minus} "
        f"(95 % interval {_span(size, each)}"
    )
    if adjusted >= 1 - LEVEL:
        return (
            f"{told}), but not significantly so after Holm's correction for {compared} comparisons (p = {adjusted:.2g})"
        )
    corrected = f" after Holm's correction for {compared} comparisons" if compared > 1 else ""
    return f"{told}, p = {adjusted:.2g}{corrected})"


def _place(each: Measure) -> str:
    """`accuracy, longer` as the beginning of a sentence."""
    return each.label[0].upper() + each.label[1:]


def _word(estimate: float, each: Measure) -> str:
    if each.metric == "seconds":
        return "slower" if estimate > 0 else "faster"
    if each.larger_is_better is None:
        return "higher" if estimate > 0 else "lower"
    return "better" if (estimate > 0) == each.larger_is_better else "worse"


def _span(interval: Interval, each: Measure) -> str:
    low, high = (_number(end, each).partition(" ")[0] for end in (interval.low, interval.high))
    return f"{low} to {high}"


def _number(amount: float, each: Measure, *, sign: bool = False) -> str:
    scale, digits = {"points": (100, 1), "nats": (1, 4), "s": (1, 1), "tokens": (1, 1), "steps": (1, 1)}.get(
        each.unit, (1, 4)
    )
    text = f"{scale * amount:{'+' if sign else ''},.{digits}f}"
    return f"{text} {each.unit}".rstrip()


def _numbers(arms: Sequence[ArmResult], each: Measure) -> tuple[list[Table], int] | None:
    """For each arm `[S, P]`, paired by seed and problem, and P (0: values without problems, `[S, 1]`).

    None where the arms have no seed in common, or were asked other questions under the same name.
    """
    runs = _paired(arms, each.name)
    if not runs:
        return None
    if all(each.stage in run.shares for row in runs for run in row):
        sides = _tables(runs, each.stage)
        if not sides[0][0]:
            return None
        if each.has_problems:
            return sides, len(sides[0][0])
    return [[[run.values[each.name]] for run in side] for side in zip(*runs, strict=True)], 0


def _paired(arms: Sequence[ArmResult], name: str) -> list[tuple[ArmRun, ...]]:
    """The runs of every seed that all arms have; what was run once (the start) stands beside every seed."""
    runs = [{run.seed: run for run in arm.runs if name in run.values} for arm in arms]
    seeds = next((list(found) for arm, found in zip(arms, runs, strict=True) if arm.name != BASE), list(runs[0]))
    for place, arm in enumerate(arms):
        if arm.name == BASE and len(runs[place]) == 1:
            (start,) = runs[place].values()
            runs[place] = dict.fromkeys(seeds, start)
    return [tuple(found[seed] for found in runs) for seed in seeds if all(seed in found for found in runs)]


def _tables(runs: Sequence[Sequence[ArmRun]], stage: str) -> list[Table]:
    """For each arm the `[S, P]` shares of its runs, over the problems that all of them were asked."""
    rows = [[run.shares[stage] for run in row] for row in runs]
    asked = [all(side[p] is not None for row in rows for side in row) for p in range(len(rows[0][0]))]
    return [
        [[share for share, kept in zip(row[side], asked, strict=True) if kept and share is not None] for row in rows]
        for side in range(len(rows[0]))
    ]
