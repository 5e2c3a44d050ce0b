"""How much of a gap is closed: the numbers of sheet 5, and the interval of such a share."""

import math

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluation import gap_recovered, hierarchical_gap_recovered, reasoning_gap_recovered
from posttrain.evaluation.statistics import hierarchical_difference


def test_the_share_of_the_sheet() -> None:
    assert gap_recovered(46.9, 30.0, 48.0) == pytest.approx(0.9388888889, abs=1e-10)


def test_benchmarks_are_averaged_before_the_share_is_taken() -> None:
    student, baseline, ceiling = (60, 20), (40, 10), (64, 18)
    assert gap_recovered(student, baseline, ceiling) == pytest.approx(0.9375)
    each = [gap_recovered(*row) for row in zip(student, baseline, ceiling, strict=True)]
    assert np.mean(each) == pytest.approx(1.0416666667)


@pytest.mark.parametrize(("student", "share"), [(30.0, 0.0), (48.0, 1.0), (57.0, 1.5), (21.0, -0.5)])
def test_a_share_is_not_cut_off(student: float, share: float) -> None:
    assert gap_recovered(student, 30.0, 48.0) == pytest.approx(share)


def test_without_a_gap_there_is_no_share_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="ceiling and baseline are both 30"):
        assert math.isnan(gap_recovered(46.9, 30.0, 30.0))


def test_both_readings_of_the_baseline_are_given() -> None:
    found = reasoning_gap_recovered(student=60.0, teacher=40.0, base_student=20.0, ceiling=65.0)
    assert found.vs_teacher == pytest.approx(0.8)
    assert found.vs_base_student == pytest.approx(40 / 45)


def tables(rng: np.random.Generator, shares: tuple[float, ...], problems: int = 80) -> list[list[list[float]]]:
    """For each mean share `[3, P]`, of problems that are easy or hard for all."""
    easy = rng.normal(0, 0.1, problems)
    return [(rng.random((3, problems)) < np.clip(easy + share, 0, 1)).astype(float).tolist() for share in shares]


def test_a_share_is_in_the_interval_exactly_if_the_difference_that_it_stands_for_may_be_0() -> None:
    student, baseline, ceiling = tables(np.random.default_rng(3), (0.7, 0.3, 0.75))
    found = hierarchical_gap_recovered(student, baseline, ceiling)
    assert found.low < found.estimate < found.high
    for share in (found.low - 0.01, found.low + 0.01, found.high - 0.01, found.high + 0.01):
        reached, gap = (np.subtract(side, baseline) for side in (student, ceiling))
        difference = hierarchical_difference(share * gap, reached, np.random.default_rng(0))
        assert (share in found) == (0.0 in difference.interval)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, repeats, held = np.random.default_rng(5), 60, 0
    for _ in range(repeats):
        found = hierarchical_gap_recovered(*tables(rng, (0.6, 0.3, 0.7), problems=60), resamples=200)
        held += 0.75 in found
    assert held >= stats.binom.ppf(0.001, repeats, 0.95), f"{held} of {repeats}"


def test_a_ceiling_that_is_not_surely_above_the_baseline_rules_no_share_out() -> None:
    found = hierarchical_gap_recovered(*tables(np.random.default_rng(4), (0.6, 0.5, 0.5)))
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_ceiling_below_the_baseline_is_no_gap_however_sure_it_is() -> None:
    found = hierarchical_gap_recovered([[0.0, 0.1]] * 3, [[0.5, 0.6]] * 3, [[0.0, 0.1]] * 3)
    assert (found.low, found.high) == (-math.inf, math.inf)
