"""Numbers of sheet 12; solver and verifier against brute force."""

import ast
import re
from collections.abc import Iterator
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.tasks.countdown import evaluate
from posttrain.tasks.general_points import MIXED, GeneralPointsTask, solve


def sample_of(answer: str, numbers: list[int] | None = None) -> Sample:
    return Sample(prompt=(), answer=answer, task="general_points", meta={"numbers": numbers} if numbers else {})


def reward(sample: Sample, formula: str) -> float:
    return GeneralPointsTask().verify(sample, f"<answer>{formula}</answer>").parts["reward"]


@pytest.mark.parametrize(
    ("answer", "formula", "expected"),
    [
        ("(10+2)*(7-5)", "(10+2)*(7-5)", 5),
        ("(10+2)*(7-5)", "10+2+7+5", 5),
        ("(10+2)*(7-5)", "10+2+7+5 = 24", 5),
        ("(10+2)*(7-5)", "10*2+7-5", -1),
        ("(10+2)*(7-5)", "10+2+7+4", -2),
        ("(10+2)*(7-5)", "10+2+7", -2),
        ("2*(7+5)", "2(7+5)", -3),
        ("2*(10+1)", "(13-1)*2", -2),
        ("(10+2)*(7-5)", "(10+2)*(7-5", -3),
        ("(10+2)*(7-5)", "10+2)*(7-5)", -3),
        ("(10+2)*(7-5)", "*10+2*7-5", -3),
        ("(10+2)*(7-5)", "10 2+7-5", -3),
        ("(10+2)*(7-5)", "ten", -3),
        ("8/(3-8/3)", "8/(3-8/3)", 5),
    ],
)
def test_rewards_are_those_of_sheet_12(answer: str, formula: str, expected: float) -> None:
    assert reward(sample_of(answer), formula) == expected


def test_floats_would_miss_a_right_formula() -> None:
    assert eval("8/(3-8/3)") != 24
    assert GeneralPointsTask().verify(sample_of("8/(3-8/3)"), "<answer>8/(3-8/3)</answer>").value == 1


def test_validity_is_about_what_the_question_states() -> None:
    """A fake probe: the question says J=12, the score J=10."""
    task, sample = GeneralPointsTask(), sample_of("10+7+7", [12, 7, 7])
    trained = task.verify(sample, "<answer>7+7+10</answer>")
    told = task.verify(sample, "<answer>12+7+7</answer>")
    assert (trained.value, trained.parts["format"]) == (1, 0)
    assert (told.value, told.parts["format"]) == (0, 1)


def brute(numbers: list[Fraction]) -> Iterator[Fraction]:
    """Everything that numbers can make, in the plainest way."""
    if len(numbers) == 1:
        yield numbers[0]
    for i in range(len(numbers)):
        for j in range(len(numbers)):
            if i != j:
                rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
                a, b = numbers[i], numbers[j]
                for made in (a + b, a - b, a * b, *([a / b] if b else [])):
                    yield from brute([*rest, made])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=1, max_size=4), st.sampled_from([0, 1, 12, 24, 37]), st.integers())
def test_the_solver_finds_a_solution_exactly_where_there_is_one(numbers: list[int], target: int, seed: int) -> None:
    found = solve(numbers, target, Random(seed))
    assert (found is not None) == (target in set(brute([Fraction(n) for n in numbers])))
    if found is not None:
        assert evaluate(found.text) == (Fraction(target), sorted(numbers))
        assert found.value == target
        assert len(found.steps) == len(numbers) - 1
        for step in found.steps:
            left, _, right = step.partition("=")
            assert exact(left) == exact(right)


def exact(text: str) -> Fraction:
    """The value of an expression, with negative numbers."""
    code = re.sub(r"\d+", r"Fraction(\g<0>)", text)
    assert ast.parse(code)
    return eval(code, {"Fraction": Fraction})  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rules": "mixed", "part": "train"},
        {"rules": [5], "with_face": True},
        {"rules": [(11, 12, 13)], "part": "test"},
        {"rules": [(11, 12, 13)], "scored": 10, "with_face": True},
        {"large": (14, 19)},
        {"cards": 3, "numbers": (1, 9), "faces": "JQ", "target": [12, 20]},
    ],
    ids=str,
)
def test_demonstrations_are_right_in_both_styles(options: dict[str, Any]) -> None:
    task = GeneralPointsTask(**options)
    for style in task.styles:
        for sample in task.samples(40, 1, style=style):
            score = task.verify(sample, sample.response_text)
            assert score.value == 1
            if "scored" not in options:
                assert score.parts == {"format": 1, "reward": 5}


def test_a_deal_is_asked_with_the_worth_of_its_faces() -> None:
    sample = GeneralPointsTask(rules=[(11, 12, 13)], with_face=True).samples(1, 0)[0]
    assert sample.prompt_text.startswith("J=11, Q=12, K=13. Use ")
    cards = re.findall(r"Use (.*) once", sample.prompt_text)[0].split(", ")
    assert sample.meta["numbers"] == [{"J": 11, "Q": 12, "K": 13}.get(card) or int(card) for card in cards]


def test_every_deal_has_the_face_or_the_large_card_that_was_asked_for() -> None:
    for sample in GeneralPointsTask(with_face=True).samples(50, 0):
        assert re.search(r"Use .*[JQK].* once", sample.prompt_text)
    for sample in GeneralPointsTask(large=(14, 19)).samples(50, 0):
        assert any(14 <= number <= 19 for number in sample.meta["numbers"])


def test_mixed_rules_all_occur() -> None:
    samples = GeneralPointsTask(rules="mixed").samples(400, 0)
    assert len({sample.prompt_text.partition(". ")[0] for sample in samples}) == len(set(MIXED)) == 7


def test_harder_deals_have_five_cards() -> None:
    for sample in GeneralPointsTask().samples(10, 0, difficulty="harder"):
        assert len(sample.meta["numbers"]) == 5


def test_the_parts_share_no_cards_whatever_the_rule() -> None:
    def hands(**options: Any) -> set[str]:
        found = GeneralPointsTask(**options).samples(200, 3)
        return {",".join(sorted(re.findall(r"Use (.*) once", s.prompt_text)[0].split(", "))) for s in found}

    assert not hands(part="train") & hands(part="test", rules=[5])


@pytest.mark.parametrize(
    "options", [{"faces": "JX"}, {"faces": "", "with_face": True}, {"cards": 1}, {"rules": []}, {"target": []}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        GeneralPointsTask(**options)
