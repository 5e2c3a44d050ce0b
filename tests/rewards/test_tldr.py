"""TLDR's rewards against the sheet's numbers."""

from typing import Any

import numpy as np
import pytest

from posttrain.advantages import Outcomes, build_advantage
from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.rewards import Attempt, Score, build_reward
from posttrain.rewards.levels import tldr

LEVELS = ["short", "medium", "long"]


def attempt(
    length: int, right: bool = True, level: str | None = "short", text: str = "a</think>b", finish: Any = "stop"
) -> Attempt:
    meta = {} if level is None else {"level": level}
    return Attempt(
        sample=Sample((user("6 * 7?"),), answer="42", meta=meta),
        text=text,
        tokens=np.arange(length, dtype=np.int32),
        logprobs=np.zeros(length, np.float32),
        finish_reason=finish,
        verify=lambda sample, text: Score(float(right)),
    )


def values(*attempts: Attempt, **options: Any) -> list[float]:
    return [score.value for score in tldr(list(attempts), 0.0, **options)]


def advantages(rewards: list[float]) -> list[float]:
    count = len(rewards)
    outcomes = Outcomes(np.array(rewards), np.zeros(count, np.int64), np.ones(count, np.int64))
    spread = build_advantage({"name": "group", "std": "population"})(outcomes)
    return [float(column[0]) for column in spread["advantage"]]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("short", [0.91, 0.55, 0.10, 0.10, 0]),
        ("medium", [0.95, 0.75, 0.5, 0.5, 0]),
        ("long", [0.99, 0.95, 0.9, 0.9, 0]),
    ],
)
def test_golden_numbers_of_the_linear_form(level: str, expected: list[float]) -> None:
    group = [attempt(length, level=level) for length in (100, 500, 1000, 3000)] + [attempt(100, False, level)]
    assert values(*group, longest=1000) == pytest.approx(expected)


def test_golden_numbers_of_a_group_whose_long_right_answer_beats_the_wrong_one() -> None:
    found = values(attempt(100), attempt(200), attempt(400), attempt(50, False), longest=1000)
    assert found == pytest.approx([0.91, 0.82, 0.64, 0])
    assert advantages(found) == pytest.approx([0.8928, 0.6397, 0.1336, -1.6661], abs=1e-4)


def test_golden_numbers_of_the_relative_form_which_the_wrong_answer_does_not_enter() -> None:
    found = values(attempt(100), attempt(200), attempt(600), attempt(50, False))
    assert found == pytest.approx([0.7446, 0.6523, 0.2796, 0], abs=1e-4)
    assert values(attempt(100), attempt(200), attempt(600), attempt(5000, False)) == pytest.approx(found)
    assert values(attempt(123), attempt(50, False)) == pytest.approx([0.55, 0])


@pytest.mark.parametrize("options", [{"longest": 1000}, {}])
def test_without_strength_it_is_plain_being_right(options: dict[str, Any]) -> None:
    group = (attempt(10), attempt(900), attempt(10, False))
    assert values(*group, strength=0.0, **options) == [1, 1, 0]


@pytest.mark.parametrize("options", [{"longest": 1000}, {}])
@pytest.mark.parametrize("right", [True, False])
def test_equal_answers_have_no_advantage(right: bool, options: dict[str, Any]) -> None:
    found = values(*(attempt(70, right) for _ in range(4)), **options)
    assert advantages(found) == [0, 0, 0, 0]


def test_a_right_answer_is_always_worth_more_than_a_wrong_one() -> None:
    for level in LEVELS:
        assert values(attempt(10**6, level=level), longest=1)[0] > 0
        assert values(attempt(10**6, level=level), attempt(1, level=level))[0] > 0


@pytest.mark.parametrize("unfinished", [attempt(9, finish="length"), attempt(9, text="a b")])
def test_what_never_ended_or_never_stopped_thinking_is_wrong(unfinished: Attempt) -> None:
    assert values(unfinished, longest=100) == [0]
    (score,) = tldr([unfinished], 0.0, longest=100)
    assert score.parts == {"right": 0}


def test_models_that_do_not_think_need_no_stop() -> None:
    assert values(attempt(50, text="b"), longest=100, stop="") == pytest.approx([0.55])


def test_only_the_thinking_may_be_counted() -> None:
    assert values(attempt(50), longest=100, counted_to=9) == pytest.approx([1 - 0.9 * 10 / 100])
    assert values(attempt(50), longest=100, counted_to=77) == pytest.approx([0.55])


def test_one_strength_needs_no_level_and_levels_need_one() -> None:
    assert values(attempt(50, level=None), longest=100, strength=0.2) == pytest.approx([0.9])
    with pytest.raises(UserError, match=r"level is None.*curation 'levels'"):
        values(attempt(50, level=None), longest=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.0}, "option 'strength' has to be below 1, found 1.0"),
        ({"strength": {"short": -0.1}}, "strength"),
        ({"longest": 0}, "longest"),
    ],
)
def test_strengths_that_would_rank_right_answers_with_wrong_ones_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_reward({"name": "tldr", **options})


def test_a_verifier_that_fails_is_an_error_and_no_zero() -> None:
    broken = Attempt(
        sample=Sample((user("?"),), meta={"level": "short"}),
        text="</think>",
        tokens=np.zeros(3, np.int32),
        logprobs=np.zeros(3, np.float32),
        finish_reason="stop",
        verify=lambda sample, text: Score(0.0, error="no answer to compare with"),
    )
    (score,) = tldr([broken], 0.0, longest=10)
    assert score.error == "no answer to compare with"
