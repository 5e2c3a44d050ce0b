"""How much of a gap a method closes: of what a ceiling is above a baseline, the share that it reaches.

A share of 1 is the whole gap; below 0 and above 1 are possible, and nothing is cut off.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported when they are asked for

from posttrain.evaluation.statistics import RESAMPLES, Interval, hierarchical_bootstrap

Rows = Sequence[Sequence[float]]
"""`[S, P]`: a row for each seed, one value for each problem (or one in all, where a measure has no problems)."""

PRECISION = 1e-4
FARTHEST = 1e6
"""Gaps: an end of an interval that is farther away is called infinite."""


@dataclass(frozen=True)
class ReasoningGapRecovered:
    """RGR (W2SR, arXiv 2505.20072) with both readings of what its ceiling, the student after RL, is compared with."""

    vs_teacher: float
    vs_base_student: float


def gap_recovered(value: npt.ArrayLike, baseline: npt.ArrayLike, ceiling: npt.ArrayLike) -> float:
    """(value - baseline) / (ceiling - baseline), each the mean over its benchmarks: 1 is the whole gap.

    Of means, not the mean of each benchmark's share, in which a small gap counts as much as a large one. NaN, with a
    warning, where ceiling and baseline are the same. PGR of weak-to-strong generalisation (arXiv 2312.09390), RGR of
    W2SR (arXiv 2505.20072).
    """
    reached, start, end = (float(np.mean(np.asarray(side, np.float64))) for side in (value, baseline, ceiling))
    if end == start:
        warnings.warn(f"ceiling and baseline are both {end:g}: there is no gap to recover a share of", stacklevel=2)
        return math.nan
    return (reached - start) / (end - start)


def reasoning_gap_recovered(
    student: npt.ArrayLike, teacher: npt.ArrayLike, base_student: npt.ArrayLike, ceiling: npt.ArrayLike
) -> ReasoningGapRecovered:
    """RGR of a student that learned from a weak teacher; the four are pass@1, of one or of several benchmarks.

    The paper's formula seems to subtract the weak teacher, as PGR does; its prose ("of the gain by RL") speaks of the
    student before training. Reconstructed, so both are given. `ceiling`: the same student trained by RL.
    """
    return ReasoningGapRecovered(
        gap_recovered(student, teacher, ceiling), gap_recovered(student, base_student, ceiling)
    )


def hierarchical_gap_recovered(
    value: Rows, baseline: Rows, ceiling: Rows, *, seed: int = 0, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """`gap_recovered` over seeds and problems, with an interval: the shares r for which 0 is in the interval of the
    difference (value - baseline) - r (ceiling - baseline), by the same bootstrap as any difference (Fieller 1954).

    A claim "at least r of the gap" is so decided exactly as the claim that this difference is above 0. Where it is not
    sure that the ceiling is above the baseline, no share is ruled out: both ends are infinite (and the estimate is NaN
    where the two are the same). Shapes as `hierarchical_bootstrap`, all three paired by seed and problem.
    """
    reached = [np.subtract(one, start) for one, start in zip(value, baseline, strict=True)]
    gaps = [np.subtract(end, start) for end, start in zip(ceiling, baseline, strict=True)]
    mean_gap = float(np.mean([gap.mean() for gap in gaps]))
    estimate = float(np.mean([one.mean() for one in reached])) / mean_gap if mean_gap else math.nan

    def interval(rows: Sequence[npt.ArrayLike]) -> Interval:
        return hierarchical_bootstrap(rows, np.random.default_rng(seed), level=level, resamples=resamples)

    def rest(share: float) -> Interval:
        return interval([one - share * gap for one, gap in zip(reached, gaps, strict=True)])

    if interval(gaps).low <= 0:
        return Interval(estimate, -math.inf, math.inf, level)
    low = _end(lambda share: rest(share).low, estimate, -1.0)
    high = _end(lambda share: rest(share).high, estimate, 1.0)
    return Interval(estimate, low, high, level)


def _end(rest: Callable[[float], float], estimate: float, side: float) -> float:
    """Where `rest`, which falls as the share grows, crosses 0, on one side of the estimate."""
    if side * rest(estimate) <= 0:
        return estimate  # every seed and problem gives the same
    distance = 1.0
    while side * rest(estimate + side * distance) >= 0:
        distance *= 2
        if distance > FARTHEST:
            return side * math.inf
    outer = estimate + side * distance
    return float(scipy.optimize.brentq(rest, min(estimate, outer), max(estimate, outer), xtol=PRECISION))
