import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.evaluation.metrics import (
    answer_entropy,
    best_at_k,
    distinct_answers,
    draw_counts,
    has_valid_format,
    log_likelihood,
    majority_at_k,
    pass_at_k,
)

rng = np.random.default_rng


def test_draw_counts_are_powers_of_two_and_n():
    assert draw_counts(1) == [1]
    assert draw_counts(6) == [1, 2, 4, 6]
    assert draw_counts(8) == [1, 2, 4, 8]


def test_pass_at_k_of_worked_examples():
    # 1 - C(6,2)/C(10,2) = 1 - 15/45; 1 - C(9,5)/C(10,5) = 1/2
    assert pass_at_k([10, 10], [4, 0], 2) == pytest.approx([2 / 3, 0])
    assert pass_at_k([10], [1], 5) == pytest.approx([0.5])


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_the_subsets_with_a_right_answer(case: tuple[int, int, int]):
    n, c, k = case
    subsets = list(itertools.combinations([i < c for i in range(n)], k))
    assert pass_at_k([n], [c], k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_k_never_falls_with_k_and_starts_at_the_accuracy(case: tuple[int, int]):
    n, c = case
    chances = [pass_at_k([n], [c], k)[0] for k in draw_counts(n)]
    assert chances[0] == pytest.approx(c / n)
    assert chances[-1] == (c > 0)
    assert (np.diff(chances) >= -1e-12).all()


def test_pass_at_k_of_many_draws_does_not_overflow():
    expected = 1 - math.comb(9_900, 1_000) / math.comb(10_000, 1_000)
    assert pass_at_k([10_000], [100], 1_000)[0] == pytest.approx(expected, rel=1e-9)


def test_fewer_draws_than_k_say_nothing():
    assert np.isnan(pass_at_k([3], [3], 4)).all()
    assert math.isnan(majority_at_k(["1"], [1], 2, rng(0)))


def test_pass_at_k_refuses_impossible_counts():
    with pytest.raises(ValueError, match="more right answers"):
        pass_at_k([3], [4], 1)
    with pytest.raises(ValueError, match="k of 1"):
        pass_at_k([3], [1], 0)


def test_the_majority_wins():
    assert majority_at_k(["7", "12", "12", "3"], [0, 1, 1, 0], 4, rng(0)) == 1


def test_a_tie_goes_to_the_answer_that_was_drawn_first():
    assert majority_at_k(["7", "12", "12", "7"], [0, 1, 1, 0], 4, rng(0)) == 0
    assert majority_at_k(["12", "7", "7", "12"], [1, 0, 0, 1], 4, rng(0)) == 1


def test_draws_without_an_answer_do_not_vote():
    assert majority_at_k([None, None, None, "12"], [0, 0, 0, 1], 4, rng(0)) == 1
    assert majority_at_k([None, None], [0, 0], 2, rng(0)) == 0


def test_majority_at_one_is_the_accuracy():
    assert majority_at_k(["1", "2", "1", None], [1, 0, 1, 0], 1, rng(0)) == pytest.approx(0.5)


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=6), st.data())
@settings(max_examples=60)
def test_majority_at_k_is_the_mean_over_all_subsets(answers: list[str | None], data: st.DataObject):
    k = data.draw(st.integers(1, len(answers)))
    values = [float(answer == "a") for answer in answers]

    def elected(subset: tuple[int, ...]) -> float:
        said = [answers[i] for i in subset if answers[i] is not None]
        best = max(said, key=lambda answer: (said.count(answer), -said.index(answer))) if said else None
        return float(best == "a")

    subsets = list(itertools.combinations(range(len(answers)), k))
    expected = sum(map(elected, subsets)) / len(subsets)
    assert majority_at_k(answers, values, k, rng(0)) == pytest.approx(expected)


def test_many_subsets_are_sampled_without_bias():
    answers = ["a"] * 9 + ["b"] * 7
    values = [1.0] * 9 + [0.0] * 7
    exact = majority_at_k(answers, values, 3, rng(0))  # 560 subsets
    found = majority_at_k(answers, values, 3, rng(0), subsets=500)
    assert exact == pytest.approx((math.comb(9, 3) + math.comb(9, 2) * 7) / 560)
    assert found != exact
    assert found == pytest.approx(exact, abs=0.06)


def test_sampled_subsets_keep_the_order_of_drawing():
    answers, values = [str(i) for i in range(16)], np.arange(16.0)  # all tied: the smaller of two numbers wins
    assert majority_at_k(answers, values, 2, rng(0), subsets=100) == pytest.approx(14 / 3, abs=1)


def test_variety_of_answers():
    assert answer_entropy(["1", "1", "2", "2", None]) == pytest.approx(math.log(2))
    assert answer_entropy(["1", "1"]) == answer_entropy([None]) == 0
    assert distinct_answers(["1", "2", "1", None]) == 2


def test_format_is_what_the_verifier_says():
    assert not has_valid_format({"format": 0.0}, {}, right=True)
    assert has_valid_format({"format": 1.0}, {"reason": "several"}, right=False)
    assert has_valid_format({}, {"reason": "wrong"}, right=False)
    assert not has_valid_format({}, {"reason": "Several: 3 and 4"}, right=False)
    assert has_valid_format({}, {}, right=False)


def test_log_likelihood_of_a_worked_example():
    found = log_likelihood(np.float32([-1, -3, -0.5]), [0, 0, 1])
    assert found.per_token == pytest.approx(-1.5)
    assert found.per_sequence == pytest.approx([-2, -0.5])
    assert found.perplexity == pytest.approx(math.exp(1.5))
    assert found.tokens == 3


def test_log_likelihood_is_summed_in_double_precision():
    logprobs = np.full(200_000, -0.1, dtype=np.float32)
    assert log_likelihood(logprobs, np.zeros(200_000, dtype=int)).per_token == float(np.float32(-0.1))


@pytest.mark.parametrize(
    ("logprobs", "sequence", "message"),
    [([], [], "found"), ([-1.0, -math.inf], [0, 1], "1 of 2"), ([-1.0], [1], "sequence 0"), ([-1.0], [0, 1], "found")],
)
def test_log_likelihood_refuses_what_has_none(logprobs: list[float], sequence: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        log_likelihood(logprobs, sequence)


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.lists(st.integers(0, 3), min_size=n, max_size=n), st.just(n))))
def test_best_at_k_is_the_mean_over_all_subsets(case: tuple[list[int], int]):
    rewards, n = case
    values = [float(place % 2) for place in range(n)]
    for k in range(1, n + 1):
        chosen = [
            max(subset, key=lambda place: (rewards[place], -place)) for subset in itertools.combinations(range(n), k)
        ]
        assert best_at_k(rewards, values, k) == pytest.approx(np.mean([values[place] for place in chosen]))
    assert math.isnan(best_at_k(rewards, values, n + 1))
