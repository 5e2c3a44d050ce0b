"""The screening reward against the sheet's numbers."""

from typing import Any

import numpy as np
import pytest

from posttrain.advantages import Outcomes, build_advantage
from posttrain.data import Sample, user
from posttrain.rewards import Attempt, Moment, build_reward
from posttrain.rewards.screening import read_decision, screening, suits, years_by_number, years_by_substring

GOOD: dict[str, Any] = {
    "score": 80,
    "job_skills": "Python, SQL, AWS, Docker",
    "candidate_skills": "python, sql, aws",
    "experience": "Senior engineer, 10 years",
}
BAD: dict[str, Any] = {**GOOD, "score": 20, "candidate_skills": "python", "experience": "junior"}


def attempt(text: str, status: str = "SELECTED", **meta: Any) -> Attempt:
    return Attempt(
        sample=Sample((user("?"),), answer=status, meta={**GOOD, **meta}),
        text=text,
        tokens=np.zeros(4, np.int32),
        logprobs=np.zeros(4, np.float32),
        finish_reason="stop",
    )


def said(score: Any, status: str) -> str:
    return f'{{"score": {score}, "status": "{status}"}}'


def advantages(rewards: list[float]) -> list[float]:
    count = len(rewards)
    outcomes = Outcomes(np.array(rewards), np.zeros(count, np.int64), np.ones(count, np.int64))
    return [float(c[0]) for c in build_advantage({"name": "group", "eps": 1e-4})(outcomes)["advantage"]]


@pytest.mark.parametrize(
    ("text", "parts", "value"),
    [
        (said(80, "SELECTED"), (2, 1, 1, 1), 1.4),
        (said(60, "SELECTED"), (2, 0.6, 1, 0), 1.12),
        (said(20, "REJECTED"), (-2, -0.2, 1, -1), -0.84),
        ("I would take them.", (-2, -0.6, 1, -1), -0.92),
        (said(80, "MAYBE"), (-1, 1, 1, 1), 0.2),
    ],
)
def test_golden_numbers_of_a_good_candidate(text: str, parts: tuple[float, ...], value: float) -> None:
    score = screening(attempt(text))
    assert tuple(score.parts.values()) == pytest.approx(parts)
    assert score.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "parts", "value"),
    [(said(20, "REJECTED"), (0, 1, -1, 1), 0.2), (said(90, "SELECTED"), (-1, -0.4, -1, -1), -0.88)],
)
def test_golden_numbers_of_a_bad_candidate(text: str, parts: tuple[float, ...], value: float) -> None:
    score = screening(attempt(text, "REJECTED", **BAD))
    assert tuple(score.parts.values()) == pytest.approx(parts)
    assert score.value == pytest.approx(value)


def test_the_first_try_of_the_authors_punishes_more() -> None:
    harsh = {"missed": -5.0, "wrongly_selected": -2.0}
    assert screening(attempt(said(20, "REJECTED")), **harsh).parts["status"] == -5
    assert screening(attempt(said(90, "SELECTED"), "REJECTED", **BAD), **harsh).parts["status"] == -2
    assert screening(attempt(said(90, "MAYBE"), "REJECTED", **BAD), **harsh).parts["status"] == -2


@pytest.mark.parametrize("gold", ["APPROVE", "consider", "STRONGLY_CONSIDER", "SELECTED"])
def test_statuses_that_select(gold: str) -> None:
    for status in ("APPROVE", "consider", "STRONGLY_CONSIDER", "SELECTED"):
        assert screening(attempt(said(80, status), gold)).parts["status"] == 2
    assert screening(attempt(said(80, "SELECTED"), "HOLD")).parts["status"] == -1


@pytest.mark.parametrize(("score", "expected"), [(70, 1), (60, 0.8), (45, 0.5), (20, 0), (0, -0.4)])
def test_golden_numbers_of_the_scores_closeness(score: int, expected: float) -> None:
    assert screening(attempt(said(score, "SELECTED"), score=70)).parts["score"] == pytest.approx(expected)


def test_closeness_has_a_floor_and_needs_a_right_score() -> None:
    assert screening(attempt(said(-500, "SELECTED"))).parts["score"] == -1
    assert screening(attempt(said(3, "SELECTED"), score=None)).parts["score"] == 0


@pytest.mark.parametrize(
    ("job", "candidate", "expected"),
    [
        ("a, b, c, d", "a, b, c", 1),
        ("a, b", "A ", 0),
        ("a, b, c, d, e", "a, b", 0),
        ("a, b, c", "a", -1),
        ("", "a", -1),
        ("a", "", -1),
        ("a, a, b, c", "a, b, c", 1),
        ("a, a, a, b", "a, b", 0),  # a set meets a list with doubles: 2 of 4
        (["a", "B"], ["b", "a"], 1),
    ],
)
def test_shares_of_skills(job: Any, candidate: Any, expected: float) -> None:
    found = screening(attempt(said(80, "SELECTED"), job_skills=job, candidate_skills=candidate))
    assert found.parts["skills"] == expected


@pytest.mark.parametrize(
    ("score", "years", "expected"),
    [(75, 7, 1), (74, 7, 0), (60, 5, 1), (30, 5, -1), (49, 2, 1), (86, 2, -1), (60, 2, 0), (39, 10, -1)],
)
def test_golden_numbers_of_experience(score: int, years: int, expected: float) -> None:
    assert suits(score, years) == expected


@pytest.mark.parametrize(
    ("text", "by_substring", "by_number"),
    [
        ("Senior engineer, 10 years", 10, 10),
        ("15 years", 5, 15),
        ("100 projects", 10, 0),
        ("Mid-level, 5 years", 5, 5),
        ("3 years of Go", 3, 3),
        ("junior", 1, 1),
        ("intern", 0, 0),
        ("7+ years, mid", 5, 7),
        ("amid 12 yrs", 5, 12),
    ],
)
def test_years_as_the_authors_read_them_and_as_written(text: str, by_substring: int, by_number: int) -> None:
    assert (years_by_substring(text), years_by_number(text)) == (by_substring, by_number)
    parts = screening(attempt(said(80, "SELECTED"), experience=text), years="parsed").parts
    assert parts["experience"] == suits(80, by_number)


@pytest.mark.parametrize(
    ("text", "score", "status", "readable"),
    [
        ('x {"score": 80.9, "status": "selected"} y', 80, "SELECTED", True),
        ('{"score": "70"}', 70, "REJECTED", True),
        ('{"status": "SELECTED"}', 0, "SELECTED", True),
        ('{"score": "high", "status": "SELECTED"}', 0, "REJECTED", False),
        ('{"score": null, "status": "SELECTED"}', 0, "REJECTED", False),
        ('{"score": 1e999, "status": "SELECTED"}', 0, "REJECTED", False),
        ('{"a": 1} and {"b": 2}', 0, "REJECTED", False),
        ("}{", 0, "REJECTED", False),
        ("", 0, "REJECTED", False),
    ],
)
def test_reading_a_decision(text: str, score: int, status: str, readable: bool) -> None:
    found = read_decision(text)
    assert (found.score, found.status, found.readable) == (score, status, readable)


def test_golden_numbers_of_advantages_in_pairs_which_hide_the_size_of_a_penalty() -> None:
    assert advantages([1.0, 0.9]) == pytest.approx([0.706108, -0.706108], abs=1e-6)
    assert advantages([5.0, -5.0]) == pytest.approx([0.707097, -0.707097], abs=1e-6)
    assert advantages([0.3, 0.3]) == [0, 0]


@pytest.mark.parametrize(("missed", "wrongly_selected", "from_chance"), [(-2.0, -1.0, 1 / 5), (-5.0, -2.0, 2 / 9)])
def test_soft_and_harsh_penalties_select_from_nearly_the_same_chance(
    missed: float, wrongly_selected: float, from_chance: float
) -> None:
    def worth(status: str, chance: float) -> float:
        found = [
            screening(attempt(said(50, status), gold), missed=missed, wrongly_selected=wrongly_selected).parts["status"]
            for gold in ("SELECTED", "REJECTED")
        ]
        return chance * found[0] + (1 - chance) * found[1]

    assert worth("SELECTED", from_chance) == pytest.approx(worth("REJECTED", from_chance))
    assert worth("SELECTED", from_chance + 0.01) > worth("REJECTED", from_chance + 0.01)


def test_what_does_not_depend_on_the_answer_changes_no_advantage() -> None:
    texts = [
        said(80, "SELECTED"),
        said(60, "SELECTED"),
        said(20, "REJECTED"),
        "no",
        said(80, "MAYBE"),
        said(77, "APPROVE"),
    ]
    found = []
    for skills in ("python, sql, aws", "python, sql", "rust"):  # c3 is 1, 0, -1
        group = [attempt(text, candidate_skills=skills) for text in texts]
        (scores,) = build_reward("screening")([group], Moment())
        found.append(advantages([score.value for score in scores]))
    assert found[1] == pytest.approx(found[0])
    assert found[2] == pytest.approx(found[0])
    without = [screening(attempt(text), weights=(0.4, 0.2, 0.0, 0.2)).value * 0.8 for text in texts]
    assert advantages(without) == pytest.approx(found[0])


def test_weights_are_divided_by_their_sum_and_bounds_are_as_the_sheet_says() -> None:
    text = said(60, "SELECTED")
    assert screening(attempt(text), weights=(4.0, 2.0, 2.0, 2.0)).value == pytest.approx(1.12)
    assert screening(attempt(said(80, "SELECTED"))).value == pytest.approx(1.4)
    worst = screening(attempt(said(-900, "REJECTED"), candidate_skills="rust"))
    assert worst.value == pytest.approx(-1.4)


def test_garbage_is_worth_nearly_a_right_rejection_unless_it_is_punished() -> None:
    right = screening(attempt(said(10, "REJECTED"), "REJECTED", **{**BAD, "score": 10})).value
    garbage = attempt("...", "REJECTED", **{**BAD, "score": 10})
    assert right - screening(garbage).value < 0.05
    assert right - screening(garbage, malformed=-1.0).value > 1


def test_a_sample_without_annotation_is_an_error_and_no_zero() -> None:
    bare = Attempt(
        Sample((user("?"),), answer="SELECTED"), "{}", np.zeros(1, np.int32), np.zeros(1, np.float32), "stop"
    )
    ((score,),) = build_reward("screening")([[bare]], Moment())
    assert score.error is not None
    assert "job_skills" in score.error
