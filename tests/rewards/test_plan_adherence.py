"""The reward of explore and execute, and its advantages, by the checks of sheet 33 (arXiv 2509.23946)."""

from difflib import SequenceMatcher
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.advantages import Outcomes, build_advantage
from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.rewards import Attempt, Moment, Score, build_reward
from posttrain.rewards.plan_adherence import (
    adherence,
    common_subsequence,
    plan_and_execution,
    read_titles,
    title_overlap,
)

PLAN = "<EXPLORATION>1. Find the radius\n2. Compute area of circle\n</EXPLORATION>"
HALF = f"{PLAN}<EXECUTION>\n1. **Find the radius**\nr = 0.75 m"
WHOLE = f"{HALF}\n2. Compute the area\n</EXECUTION>"
OVERLONG = {"name": "overlong", "longest": 8192, "margin": 4096}


def attempt(text: str, length: int = 3, right: bool = True) -> Attempt:
    tokens = np.zeros(length, np.int32)
    return Attempt(
        Sample((user("?"),)), text, tokens, tokens.astype(np.float32), "stop", lambda sample, said: Score(float(right))
    )


def scored(text: str, spec: Any = "plan_adherence", **more: Any) -> Score:
    return build_reward(spec)([[attempt(text, **more)]], Moment())[0][0]


def test_golden_adherence() -> None:
    assert scored(HALF).value == 0.5
    assert scored(WHOLE).value == 1
    assert scored(WHOLE).parts["plan_adherence/plan_items"] == 2
    assert scored("<EXPLORATION>Find it.</EXPLORATION><EXECUTION>1. Find it.").value == 0
    assert scored("1. Find the radius").value == 0  # no execution


def test_golden_overlap_of_titles() -> None:
    assert title_overlap("multiply speed by hours", "multiply the speed by the hours") == 1
    assert title_overlap("double x", "check units") == 0
    assert title_overlap("compute area of circle", "compute the area") == pytest.approx(2 / 3)
    assert title_overlap("", "a") == 0


@pytest.mark.parametrize(
    ("text", "length", "right", "adheres", "value"),
    [
        (HALF, 1000, True, True, 0.5),
        (HALF, 1000, True, False, 1),
        (HALF, 8192, True, True, -0.5),
        (HALF, 1000, False, True, 0),
        (HALF, 6144, True, False, 0.5),
    ],
)
def test_golden_reward(text: str, length: int, right: bool, adheres: bool, value: float) -> None:
    spec = [{"name": "plan_adherence", "gate": "task"} if adheres else "task", OVERLONG]
    assert scored(text, spec, length=length, right=right).value == pytest.approx(value)


def test_golden_advantages() -> None:
    outcomes = Outcomes(np.array([1, 0.5, 0, 0]), np.zeros(4, np.int64), np.ones(4, np.int64))
    found = np.concatenate(build_advantage("group")(outcomes)["advantage"])
    assert found == pytest.approx([1.3055796924, 0.2611159385, -0.7833478154, -0.7833478154], abs=1e-9)


def test_loose_titles_are_read_as_the_authors_do() -> None:
    assert read_titles("= 0.75 h", "loose") == ["75 h"]
    assert read_titles("= 0.75 h") == []
    assert read_titles("1. **Find** x\n12.\n ## 2. Then\n3. 4*5") == ["find x", "then", "4*5"]
    assert read_titles("12.", "loose") == [""]
    assert adherence([""], ["anything"]) == 1


def test_the_first_mark_of_preference_ends_the_plan() -> None:
    text = "a<EXECUTION>b</EXPLORATION>c"
    assert plan_and_execution(text) == ("a<EXECUTION>b", "</EXPLORATION>c")
    assert plan_and_execution("a<EXECUTION>b") == ("a", "<EXECUTION>b")
    assert plan_and_execution("ab") == ("ab", "")


def test_marks_cannot_be_empty() -> None:
    found = scored("1. a", {"name": "plan_adherence", "marks": [""]})
    assert UserError.__name__ in str(found.error)


def longest(one: str, other: str) -> int:
    """By the table of the textbook."""
    row = [0] * (len(other) + 1)
    for a in one:
        last, row = row, [0]
        for place, b in enumerate(other):
            row.append(last[place] + 1 if a == b else max(last[place + 1], row[-1]))
    return row[-1]


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_the_common_subsequence_is_that_of_the_textbook(one: str, other: str) -> None:
    found = common_subsequence(one, other)
    assert found == longest(one, other) == common_subsequence(list(other), list(one))
    assert found >= sum(block.size for block in SequenceMatcher(None, one, other).get_matching_blocks())
