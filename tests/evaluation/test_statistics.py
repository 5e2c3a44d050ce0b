import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from posttrain.evaluation.statistics import (
    Difference,
    Interval,
    bootstrap_mean,
    cohens_d,
    hierarchical_bootstrap,
    hierarchical_difference,
    holm,
    in_words,
    paired_difference,
    paired_shares,
    share_interval,
    wilson,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def coverage(truth: float, intervals: list[Interval]) -> float:
    return float(np.mean([truth in interval for interval in intervals]))


def test_wilson_gives_the_textbook_interval():
    found = wilson(8, 10)  # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964
    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert found.estimate == 0.8


def test_wilson_of_no_successes_starts_at_zero_and_does_not_end_there():
    found = wilson(0, 10)
    assert found.low == pytest.approx(0, abs=1e-12)
    assert found.high == pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6)


def test_wilson_of_no_trials_is_refused():
    with pytest.raises(ValueError, match="no trials"):
        wilson(0, 0)


def test_bootstrap_interval_of_a_normal_sample_is_students_t():
    values = rng(1).normal(size=400)
    found = bootstrap_mean(values, rng(), resamples=40_000)
    low, high = stats.t.interval(0.95, 399, values.mean(), values.std(ddof=1) / 20)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)


def test_bootstrap_is_the_same_for_the_same_generator_seed():
    values = rng(1).random(50)
    assert bootstrap_mean(values, rng(3)) == bootstrap_mean(values, rng(3))
    assert bootstrap_mean(values, rng(3)) != bootstrap_mean(values, rng(4))


def test_bootstrap_in_blocks_covers_every_resample():
    values = np.concatenate([np.zeros(600), np.ones(600)])  # 3,336 resamples a block
    found = bootstrap_mean(values, rng(), resamples=10_000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1200), rel=0.05)


def test_one_value_says_nothing_of_its_spread():
    found = bootstrap_mean([0.5], rng())
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.to_json() == {"estimate": 0.5, "low": None, "high": None, "level": 0.95}


@pytest.mark.parametrize("values", [[], [0.0, math.nan], [[1.0]]])
def test_what_has_no_mean_is_refused(values: list[float]):
    with pytest.raises(ValueError):
        bootstrap_mean(values, rng())


def test_bootstrap_covers_the_mean_of_few_skewed_values_as_often_as_claimed():
    draws = rng(5)
    found = [bootstrap_mean(draws.beta(0.4, 0.8, size=15), draws, resamples=800) for _ in range(500)]
    assert 0.92 <= coverage(1 / 3, found) <= 0.98


def test_intervals_of_few_values_or_seeds_are_as_wide_as_students_t():
    draws = rng(6)
    few = draws.normal(size=(200, 5))
    wanted = np.mean(2 * stats.t.ppf(0.975, 4) * few.std(axis=1, ddof=1) / math.sqrt(5))
    for repeat in (1, 40):  # 5 problems; 5 seeds whose problems all agree
        found = [hierarchical_bootstrap(np.repeat(x[:, None], repeat, axis=1), draws, resamples=1000) for x in few]
        assert np.mean([interval.high - interval.low for interval in found]) == pytest.approx(wanted, rel=0.04)


@pytest.mark.parametrize("problems", [1, 30])
def test_of_two_seeds_the_interval_holds_the_truth_as_often_as_claimed(problems: int):
    draws = rng(6)
    tables = [draws.normal(size=(2, 1)) + 0.1 * draws.normal(size=(2, problems)) for _ in range(600)]
    assert 0.93 <= coverage(0.0, [hierarchical_bootstrap(table, draws, resamples=50) for table in tables]) <= 0.98


def test_of_two_seeds_the_interval_and_the_p_value_agree():
    draws = rng(7)
    for _ in range(50):
        found = hierarchical_difference(np.zeros((2, 1)), 3 + draws.normal(size=(2, 1)), draws)
        assert (found.p_value < 0.05) == (0.0 not in found.interval)


def test_share_interval_is_wilson_for_single_draws():
    assert share_interval([1, 1, 0, 1], rng()) == wilson(3, 4)


def test_share_interval_of_all_right_is_not_certain():
    assert share_interval(np.ones(20), rng()).low == pytest.approx(0.8389, abs=1e-4)


def test_share_interval_stays_between_zero_and_one():
    found = share_interval([0.75, 1.0, 1.0, 0.5, 1.0], rng())
    assert found.high == 1.0
    assert 0 < found.low < found.estimate


# Seeds and problems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "seed_spread", "problem_spread", "noise"),
    [(3, 0.05, 0.0, 0.05), (3, 0.02, 0.2, 0.5), (5, 0.0, 0.3, 0.3), (5, 0.0, 0.0, 0.5)],
)
def test_hierarchical_interval_covers_whatever_makes_the_spread(
    seeds: int, seed_spread: float, problem_spread: float, noise: float
):
    draws = rng(7)
    found = []
    for _ in range(300):
        table = seed_spread * draws.normal(size=(seeds, 1)) + problem_spread * draws.normal(size=(1, 60))
        found.append(hierarchical_bootstrap(table + noise * draws.normal(size=(seeds, 60)), draws, resamples=500))
    assert 0.915 <= coverage(0.0, found) <= 1.0


def test_hierarchical_interval_is_not_much_wider_than_it_has_to_be():
    draws = rng(8)
    widths = []
    for _ in range(100):
        table = 0.02 * draws.normal(size=(5, 1)) + 0.2 * draws.normal(size=(1, 200)) + 0.5 * draws.normal(size=(5, 200))
        found = hierarchical_bootstrap(table, draws, resamples=500)
        widths.append(found.high - found.low)
    ideal = 2 * 1.96 * math.sqrt(0.02**2 / 5 + 0.2**2 / 200 + 0.5**2 / 1000)
    assert np.mean(widths) < 1.25 * ideal  # product resampling with Student's t, not scaled: 1.57 times


def test_more_seeds_do_not_stand_for_more_problems():
    problems = rng(9).normal(size=30)
    one, many = bootstrap_mean(problems, rng()), hierarchical_bootstrap(np.tile(problems, (8, 1)), rng())
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.05)


def test_one_seed_leaves_the_bootstrap_over_problems():
    values = rng(2).random(40)
    assert hierarchical_bootstrap(values[None], rng(1)) == bootstrap_mean(values, rng(1))


def test_seeds_with_problems_of_their_own_are_resampled_by_their_means():
    rows = [[0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
    assert hierarchical_bootstrap(rows, rng(1)) == bootstrap_mean([0.5, 1.0, 0.25], rng(1))


def test_hierarchical_difference_finds_what_is_there_and_not_what_is_not():
    draws = rng(11)
    a = (draws.random((4, 200)) < 0.5).astype(float)
    better = (draws.random((4, 200)) < 0.7).astype(float)
    same = (draws.random((4, 200)) < 0.5).astype(float)
    found = hierarchical_difference(a, better, draws)
    assert found.significant
    assert found.interval.estimate == pytest.approx(better.mean() - a.mean())
    assert (found.problems, found.seeds) == (200, 4)
    assert found.effect > 0.5
    assert not hierarchical_difference(a, same, draws).significant


def test_hierarchical_p_value_is_uniform_enough_without_a_difference():
    draws = rng(12)
    p = [
        hierarchical_difference(draws.normal(size=(3, 40)), draws.normal(size=(3, 40)), draws, resamples=50).p_value
        for _ in range(400)
    ]
    assert np.mean(np.array(p) < 0.05) <= 0.07
    assert np.mean(np.array(p) < 0.5) > 0.3


def test_hierarchical_p_value_is_the_t_test_where_seeds_are_all_that_differs():
    by_seed = np.array([0.1, 0.2, 0.4, 0.3])
    a, b = np.zeros((4, 50)), np.repeat(by_seed[:, None], 50, axis=1)
    found = hierarchical_difference(a, b, rng())
    assert found.p_value == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue, rel=1e-9)


def test_a_difference_that_is_the_same_everywhere_is_not_tested_by_its_spread():
    perfect = hierarchical_difference(np.zeros((2, 3)), np.ones((2, 3)), rng())
    assert perfect.p_value == pytest.approx(0.25)  # 2 of the 2³ signs of three problems
    assert not perfect.significant
    assert hierarchical_difference(np.zeros((2, 30)), np.ones((2, 30)), rng()).significant


def test_seeds_have_to_be_paired():
    with pytest.raises(ValueError, match="seeds"):
        hierarchical_difference(np.zeros((2, 3)), np.zeros((3, 3)), rng())


# Paired differences ---------------------------------------------------------------------------------------------------


def test_right_and_wrong_answers_are_compared_by_mcnemar():
    a = [1, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    b = [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]  # 6 gained, 1 lost: 2 * (1 + 7) / 2⁷
    found = paired_difference(a, b, rng())
    assert found.test == "McNemar exact"
    assert found.p_value == pytest.approx(0.125)
    assert found.interval.estimate == pytest.approx(0.5)
    assert not found.significant


def test_other_values_are_compared_by_all_flips_of_signs():
    a, b = np.array([0.0, 0.0, 0.0, 0.5]), np.array([0.25, 0.5, 1.0, 0.25])
    found = paired_difference(a, b, rng())
    d = b - a
    means = [np.dot(signs, d) for signs in itertools.product([-1, 1], repeat=4)]
    assert found.p_value == pytest.approx(np.mean(np.abs(means) >= d.sum() - 1e-12))
    assert found.test == "sign-flip permutation"


def test_equal_answers_do_not_differ():
    for values in ([0, 1, 1], [0.2, 0.5, 0.9]):
        found = paired_difference(values, values, rng())
        assert found.p_value == 1.0
        assert (found.interval.estimate, found.interval.low, found.interval.high) == (0, 0, 0)
        assert not found.significant


def test_shares_that_did_not_change_are_not_said_to_be_equal_for_certain():
    for values in ([0.0] * 20, [0.5, 1.0] * 10):
        found = paired_shares(values, values, rng())
        assert (found.interval.low, found.interval.high) == (pytest.approx(-0.161, abs=0.001), -found.interval.low)
        assert (found.interval.estimate, found.p_value) == (0, 1)
    a, b = [0.0] * 10 + [1.0] * 10, [1.0] * 15 + [0.0] * 5
    assert paired_shares(a, b, rng()) == paired_difference(a, b, rng())


@pytest.mark.parametrize("draws", [1, 4])
def test_paired_p_value_is_no_smaller_than_it_says(draws: int):
    chance = rng(13)
    p = []
    for _ in range(200):
        hard = chance.random(40)
        a, b = (chance.binomial(draws, hard) / draws for _ in range(2))
        p.append(paired_difference(a, b, chance, resamples=200).p_value)
    assert np.mean(np.array(p) <= 0.05) <= 0.08


def test_pairing_needs_equal_numbers():
    with pytest.raises(ValueError, match="2 and 3"):
        paired_difference([0, 1], [0, 1, 1], rng())


def test_effect_sizes_of_a_worked_example():
    a, b = [1.0, 2.0, 3.0], [3.0, 4.0, 5.0]  # both with variance 1
    assert cohens_d(a, b) == pytest.approx(2.0)
    assert cohens_d([1, 1], [1, 1]) == 0
    assert cohens_d([1, 1], [0, 0]) == -math.inf


# Many comparisons -----------------------------------------------------------------------------------------------------


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
@settings(max_examples=50)
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferronis(p: list[float], random):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-15).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    shuffled = list(range(len(p)))
    random.shuffle(shuffled)
    assert holm([p[i] for i in shuffled]) == pytest.approx(adjusted[shuffled])


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"1\.2"):
        holm([0.1, 1.2])


# Words ----------------------------------------------------------------------------------------------------------------


def finding(estimate: float, low: float, high: float, p: float) -> Difference:
    return Difference(Interval(estimate, low, high), p, "McNemar exact", 0.2, 100)


def test_a_finding_is_said_plainly():
    assert in_words(finding(0.04, 0.012, 0.068, 0.004)) == ("B is 4.0 points better than A (95 % interval 1.2 to 6.8)")
    assert in_words(finding(-0.04, -0.068, -0.012, 0.004), ("sft", "dft")) == (
        "dft is 4.0 points worse than sft (95 % interval 1.2 to 6.8)"
    )
    assert in_words(finding(0.01, -0.02, 0.04, 0.51)) == (
        "no significant difference between A and B (B minus A: +1.0 points, 95 % interval -2.0 to 4.0, p = 0.51)"
    )


def test_significant_needs_both_the_test_and_the_interval():
    assert not finding(0.04, 0.001, 0.08, 0.06).significant
    assert not finding(0.04, -0.001, 0.08, 0.04).significant
    assert finding(0.04, 0.001, 0.08, 0.04).to_json()["significant"] is True
