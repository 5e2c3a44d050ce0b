"""The statistics of a comparison: coverage, Holm, directions, and what must not look certain."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import example
from scipy import stats

from posttrain.comparison import analysis
from posttrain.comparison.measures import measure
from posttrain.comparison.result import ArmResult, ArmRun, ComparisonResult, from_json

ACCURACY = measure("test", "accuracy")
SECONDS = measure("train", "seconds")


def arm(name: str, shares: list[list[float]] | np.ndarray, seconds: list[float] | None = None) -> ArmResult:
    """An arm with `[S, P]` shares, and seconds for each seed."""
    runs = []
    for seed, row in enumerate(np.asarray(shares, dtype=float).tolist()):
        values = {"test.accuracy": float(np.mean(row))}
        if seconds is not None:
            values["train.seconds"] = seconds[seed]
        runs.append(ArmRun(seed, f"{name}/seed{seed}", 1.0, values, {"test": row}))
    return ArmResult(name, "sft", "", {}, {}, {}, runs)


def times(name: str, seconds: list[float]) -> ArmResult:
    return arm(name, [[1.0]] * len(seconds), seconds)


def drawn(rng: np.random.Generator, gap: float, seeds: int, problems: int) -> tuple[ArmResult, ArmResult]:
    """Two arms whose true difference is `gap`: problems are easy or hard for both, seeds are good or bad for each."""
    easy = rng.uniform(0.3, 0.6, problems)
    luck = rng.normal(0, 0.03, (2, seeds, 1))
    chances = [np.clip(easy + luck[0], 0, 1), np.clip(easy + gap + luck[1], 0, 1)]
    one, other = (arm(name, (rng.random(p.shape) < p).astype(float)) for name, p in zip("ab", chances, strict=True))
    return one, other


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap = analysis.hierarchical_difference
    monkeypatch.setattr(analysis, "hierarchical_difference", lambda *a, **k: bootstrap(*a, **{**k, "resamples": 400}))
    rng, gap, repeats, held = np.random.default_rng(7), 0.1, 200, 0
    for _ in range(repeats):
        one, other = drawn(rng, gap, seeds=3, problems=40)
        found = analysis.difference(other, one, ACCURACY)
        assert found is not None
        held += gap in found.interval
    low, high = stats.binom.ppf([0.001, 0.999], repeats, 0.95)
    assert low <= held <= max(high, repeats), f"{held} of {repeats}"  # too wide is no lie, too narrow is


def test_a_difference_is_the_arm_minus_the_other() -> None:
    better = analysis.difference(arm("b", [[1, 1, 1, 0]] * 3), arm("a", [[0, 0, 1, 0]] * 3), ACCURACY)
    assert better is not None
    assert better.interval.estimate == pytest.approx(0.5)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_difference_turned_round_changes_its_sign_and_nothing_else(seed: int) -> None:
    one, other = drawn(np.random.default_rng(seed), 0.1, seeds=3, problems=12)
    there, back = analysis.difference(one, other, ACCURACY), analysis.difference(other, one, ACCURACY)
    assert there is not None
    assert back is not None
    assert there.interval.estimate == pytest.approx(-back.interval.estimate)
    assert there.p_value == pytest.approx(back.p_value)


@given(st.lists(st.floats(1, 100), min_size=2, max_size=6), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_a_constant_cost_of_every_seed_is_found_exactly(seconds: list[float], more: float) -> None:
    found = analysis.difference(times("b", [s + more for s in seconds]), times("a", seconds), SECONDS)
    assert found is not None
    assert found.interval.estimate == pytest.approx(more, abs=1e-9)
    assert found.seeds == len(seconds)


def test_pairing_by_problem_finds_what_unpaired_noise_would_hide() -> None:
    rng = np.random.default_rng(0)
    easy = (rng.random(60) < 0.5).astype(float)
    gained = easy.copy()
    gained[np.flatnonzero(easy == 0)[:9]] = 1.0
    found = analysis.difference(arm("b", [gained] * 3), arm("a", [easy] * 3), ACCURACY)
    assert found is not None
    assert found.significant


def test_only_seeds_that_both_have_are_compared() -> None:
    one, other = times("a", [10, 11, 12]), times("b", [20, 21, 99])
    short = ArmResult("b", "sft", "", {}, {}, {}, other.runs[:2])
    found = analysis.difference(short, one, SECONDS)
    assert found is not None
    assert (found.interval.estimate, found.seeds) == (pytest.approx(10.0), 2)


def test_problems_that_one_run_was_not_asked_are_left_out() -> None:
    ours, theirs = arm("b", [[1, 1, 0]]), arm("a", [[0, 1, 0]])
    ours.runs[0].shares["test"][0] = None
    found = analysis.difference(ours, theirs, ACCURACY)
    assert found is not None
    assert (found.problems, found.interval.estimate) == (2, 0.0)


def test_the_start_is_set_against_every_seed() -> None:
    base = arm("base", [[0, 0, 1, 0]])
    found = analysis.difference(arm("a", [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0]]), base, ACCURACY)
    assert found is not None
    assert (found.seeds, found.interval.estimate) == (3, pytest.approx(0.5))


def test_the_start_minus_an_arm_is_over_every_seed_of_the_arm() -> None:
    base, trained = arm("base", [[0, 0, 1, 0]]), arm("a", [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    there, back = analysis.difference(base, trained, ACCURACY), analysis.difference(trained, base, ACCURACY)
    assert there is not None
    assert back is not None
    assert there.seeds == back.seeds == 3
    assert there.interval.estimate == pytest.approx(-back.interval.estimate)


def test_a_share_of_a_gap_is_paired_by_problem_and_the_start_stands_beside_every_seed() -> None:
    start = arm("base", [[0, 0, 0, 1] * 10])
    trained = arm("a", [[1, 0, 0, 1] * 10, [1, 1, 0, 1] * 10, [1, 0, 0, 1] * 10])
    ceiling = arm("c", [[1, 1, 0, 1] * 10, [1, 1, 1, 1] * 10, [1, 1, 0, 1] * 10])
    found = analysis.recovered(trained, start, ceiling, ACCURACY)
    assert found is not None
    assert found.estimate == pytest.approx((1 + 2 + 1) / (2 + 3 + 2))
    assert found.low < found.estimate < found.high
    assert analysis.recovered(ceiling, start, ceiling, ACCURACY).estimate == 1.0  # type: ignore[union-attr]


def test_a_gap_that_is_the_same_everywhere_is_not_said_to_be_closed_for_certain() -> None:
    start, ceiling = arm("b", [[0.0] * 20] * 3), arm("c", [[1.0] * 20] * 3)
    found = analysis.recovered(ceiling, start, ceiling, ACCURACY)
    assert found is not None
    assert found.low < 1.0 < found.high


def test_arms_that_are_both_always_wrong_are_not_said_to_be_equal() -> None:
    nothing = arm("a", [[0] * 20] * 3)
    found = analysis.difference(nothing, arm("b", [[0] * 20] * 3), ACCURACY)
    share = analysis.value(nothing, ACCURACY)
    assert found is not None
    assert share is not None
    assert found.interval.low < -0.1 < 0.1 < found.interval.high
    assert (share.low, share.high) == (0.0, pytest.approx(0.161, abs=0.001))  # Wilson's of none of 20


def test_shares_stay_between_nothing_and_all() -> None:
    found = analysis.value(arm("a", [[0, 0, 0, 1], [0, 0, 0, 0]]), ACCURACY)
    assert found is not None
    assert found.low >= 0


def test_one_seed_says_nothing_of_costs() -> None:
    found = analysis.contrasts([times("a", [10]), times("b", [12])], None, [SECONDS])[0]
    assert (found.low, found.high, found.significant) == (None, None, False)
    assert "one seed: no interval" in found.sentence


def test_p_values_are_corrected_within_each_measure_and_family() -> None:
    rng = np.random.default_rng(3)
    arms = [arm(name, (rng.random((3, 40)) < p).astype(float)) for name, p in zip("abc", (0.4, 0.6, 0.7), strict=True)]
    found = analysis.contrasts(arms, None, [ACCURACY])
    for family, size in (("first", 2), ("pairs", 3)):
        of = [each for each in found if each.family == family]
        raw = np.array([each.p_value for each in of])
        order = np.argsort(raw)
        by_hand = np.empty(size)  # Holm 1979, step by step
        running = 0.0
        for rank, index in enumerate(order):
            running = max(running, min(1.0, raw[index] * (size - rank)))
            by_hand[index] = running
        assert [each.p_adjusted for each in of] == pytest.approx(by_hand.tolist())


def test_two_arms_need_no_correction() -> None:
    (found,) = analysis.contrasts([arm("a", [[0, 1, 1, 0]] * 2), arm("b", [[1, 1, 1, 0]] * 2)], None, [ACCURACY])
    assert found.p_adjusted == found.p_value


def test_sentences_say_better_slower_and_higher() -> None:
    rng = np.random.default_rng(0)
    easy = rng.random((3, 100)) < 0.3
    a, b = (
        arm("a", easy.astype(float), [10, 11, 12]),
        arm("b", (easy | (rng.random(100) < 0.5)).astype(float), [20, 21, 22.5]),
    )
    for run, kl in zip((*a.runs, *b.runs), (0.5, 0.51, 0.52, 0.1, 0.11, 0.13), strict=True):
        run.values["test.kl"] = kl
    found = analysis.contrasts([a, b], None, [ACCURACY, measure("test", "kl"), SECONDS])
    quality, drift, cost = (each.sentence for each in found)
    assert "points better than a (95 % interval" in quality
    assert "nats lower than a" in drift
    assert "s slower than a" in cost


def test_a_difference_that_does_not_survive_holm_says_so() -> None:
    interval = analysis.Interval(0.05, 0.01, 0.09)
    found = analysis.Difference(interval, 0.03, "t", 0.2, 100, 3)
    told = analysis.sentence("b", "a", ACCURACY, found, 0.09, 3)
    assert "but not significantly so after Holm's correction for 3 comparisons (p = 0.09)" in told


def test_a_result_survives_its_file() -> None:
    made = example(problems=8)
    assert from_json(json.loads(json.dumps(made.to_json()))) == made


def test_the_result_holds_what_redoes_its_numbers() -> None:
    content = json.loads((Path(__file__).with_name("example.json")).read_text())
    result: ComparisonResult = from_json(content)
    everyone = [*result.arms, *([result.base] if result.base else [])]
    assert analysis.estimates(everyone, result.measures) == result.estimates
    assert analysis.contrasts(result.arms, result.base, result.measures) == result.contrasts
