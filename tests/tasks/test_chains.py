import re

import pytest

from posttrain.tasks.chains import LIMIT, TERMS, Chains
from posttrain.tasks.task import Difficulty

CHAIN = (7, (("+", 5), ("*", 3), ("-", 4)))


def test_a_chain_is_asked_and_worked_in_every_style() -> None:
    task = Chains()
    assert task.prompt(CHAIN) == "Compute (7+5)*3-4."
    assert [task.demonstration(CHAIN, style) for style in task.styles] == [
        "<think>7+5=12\n12*3=36\n36-4=32</think><answer>32</answer>",
        "<answer>32</answer>",
        "<think>12 36 32</think><answer>32</answer>",
        "<think>First 7+5=12, then 12*3=36, then 36-4=32.</think><answer>32</answer>",
    ]


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_the_question_has_one_reading_and_stays_small(difficulty: Difficulty) -> None:
    lengths = set()
    for sample in Chains().samples(500, 1, difficulty=difficulty):
        expression = sample.prompt_text.removeprefix("Compute ").removesuffix(".")
        assert eval(expression) == int(sample.answer or "")
        lengths.add(len(re.findall(r"\d+", expression)))
        assert all(abs(int(number)) <= LIMIT[difficulty] for number in re.findall(r"-?\d+", sample.response_text))
    assert lengths == set(range(TERMS[difficulty][0], TERMS[difficulty][1] + 1))


@pytest.mark.parametrize("wrong", ["31", "-32", "7+5*3-4", "(7+5)*3-4", "36-4", ""])
def test_another_value_or_the_expression_itself_is_wrong(wrong: str) -> None:
    task = Chains()
    sample = next(s for s in task.samples(2000, 0) if s.answer == "32")
    assert task.verify(sample, f"<answer>{wrong}</answer>").value == 0
