import re
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import Sample, user
from posttrain.tasks.countdown import NUMBERS, Countdown, CountdownTask, Term, Way, _way, evaluate
from posttrain.tasks.task import Difficulty

PROBLEM = Countdown((3, 5, 9), Way(("5+3=8", "9*8=72"), Term(72, "9*(5+3)", "*")))
SAMPLE = Sample(prompt=(user("Use 3, 5, 9 once each to make 72."),), answer="9*(5+3)", task="countdown")


def test_a_problem_is_asked_and_worked_in_every_style() -> None:
    task = CountdownTask()
    assert task.prompt(PROBLEM) == SAMPLE.prompt_text
    assert task.demonstration(PROBLEM, "steps") == "<think>5+3=8\n9*8=72</think><answer>9*(5+3)</answer>"
    assert task.demonstration(PROBLEM, "direct") == "<answer>9*(5+3)</answer>"
    *misses, hit = task.demonstration(PROBLEM, "search").removeprefix("<think>").split("\n")
    assert hit == "5+3=8,9*8=72 yes</think><answer>9*(5+3)</answer>"
    assert all(re.fullmatch(r"(\d+[-+*/]\d+=\d+,?){2} no", miss) for miss in misses)


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_a_search_misses_one_to_three_times_and_gets_nearer(difficulty: Difficulty) -> None:
    counts = set()
    for sample in CountdownTask().samples(300, 0, difficulty=difficulty, style="search"):
        target = int(re.findall(r"\d+", sample.prompt_text)[-1])
        ends = [int(end) for end in re.findall(r"=(\d+) (?:no|yes)", sample.response_text)]
        gaps = [abs(end - target) for end in ends]
        assert gaps[-1] == 0 < min(gaps[:-1])
        assert gaps == sorted(gaps, reverse=True)
        assert sample.response_text.count(" no") == len(gaps) - 1
        counts.add(len(gaps) - 1)
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_numbers_and_targets_stay_in_range(difficulty: Difficulty) -> None:
    for sample in CountdownTask().samples(300, 4, difficulty=difficulty):
        *numbers, target = (int(number) for number in re.findall(r"\d+", sample.prompt_text))
        assert len(numbers) == NUMBERS[difficulty]
        assert 1 <= target <= 99
        assert all(1 <= number <= 20 for number in numbers)


@given(st.integers(), st.lists(st.integers(1, 20), min_size=2, max_size=5))
def test_the_text_of_a_way_has_its_value_and_numbers(seed: int, numbers: list[int]) -> None:
    way = _way(Random(seed), tuple(numbers))
    assert evaluate(way.end.text) == (Fraction(way.end.value), sorted(numbers))


@pytest.mark.parametrize("right", ["9*(5+3)", "(3 + 5) * 9", "((5+3))*9", "9×(5+3)", "9*(5+3)=72"])
def test_any_valid_expression_is_right(right: str) -> None:
    assert CountdownTask().verify(SAMPLE, f"<answer>{right}</answer>").value == 1


def test_fractions_on_the_way_are_allowed() -> None:
    sample = Sample(prompt=(user("Use 1, 5, 5, 5 once each to make 24."),), answer="5*(5-1/5)", task="countdown")
    assert CountdownTask().verify(sample, "<answer>(5-1/5)*5</answer>").value == 1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("9*5+3", "wrong"),
        ("72", "wrong_numbers"),
        ("9*8", "wrong_numbers"),
        ("5*9+3*9", "wrong_numbers"),
        ("9*(5+3)*1", "wrong_numbers"),
        ("9*(5+3)+0", "wrong_numbers"),
        ("9*(5+3)=71", "not_an_expression"),
        ("9*(5+3)=72=71", "not_an_expression"),
        ("9*(5--3)", "not_an_expression"),
        ("9*(+5+3)", "not_an_expression"),
        ("9**(5-3)", "not_an_expression"),
        ("9//(5-3)", "not_an_expression"),
        ("9/(5-5)", "not_an_expression"),
        ("9*(5+3", "not_an_expression"),
        ("9.0*(5+3)", "not_an_expression"),
        ("__import__('os').getpid()", "not_an_expression"),
        ("(" * 99 + "9*(5+3)" + ")" * 94, "not_an_expression"),
        ("1" * 300, "not_an_expression"),
        ("", "malformed"),
    ],
)
def test_other_expressions_are_wrong_and_the_reason_is_given(wrong: str, reason: str) -> None:
    score = CountdownTask().verify(SAMPLE, f"<answer>{wrong}</answer>")
    assert (score.value, score.info["reason"]) == (0, reason)


def test_several_expressions_or_none_are_wrong() -> None:
    task = CountdownTask()
    both = "<answer>9*(5+3)</answer><answer>(5+3)*9</answer>"
    assert task.verify(SAMPLE, both).info["reason"] == "several"
    assert task.verify(SAMPLE, "9*(5+3)").info["reason"] == "missing"


def test_a_sample_whose_reference_is_no_expression_is_an_error() -> None:
    assert CountdownTask().verify(Sample(prompt=(), answer=None), "<answer>1</answer>").error is not None
