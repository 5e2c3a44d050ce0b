import pytest

from posttrain.tasks.generated import part_of
from posttrain.tasks.multiplication import DIGITS, Multiplication
from posttrain.tasks.task import Difficulty


def test_a_product_is_asked_and_worked_in_every_style() -> None:
    task = Multiplication()
    assert task.prompt((47, 36)) == "Multiply 47 by 36."
    assert [task.demonstration((47, 36), style) for style in task.styles] == [
        "<think>47*30=1410\n47*6=282\n1410+282=1692</think><answer>1692</answer>",
        "<answer>1692</answer>",
        "<think>1410+282=1692</think><answer>1692</answer>",
        "<think>The parts are 47*30=1410, 47*6=282, and together 1410+282=1692.</think><answer>1692</answer>",
    ]


@pytest.mark.parametrize(
    ("factors", "work"),
    [
        ((6, 47), "6*40=240\n6*7=42\n240+42=282"),
        ((47, 6), "6*40=240\n6*7=42\n240+42=282"),
        ((305, 7), "7*300=2100\n7*5=35\n2100+35=2135"),
        ((20, 300), "300*20=6000"),
        ((40, 7), "7*40=280"),
        ((12, 345), "345*10=3450\n345*2=690\n3450+690=4140"),
        ((123, 405), "123*400=49200\n123*5=615\n49200+615=49815"),
    ],
)
def test_the_shorter_factor_is_split_unless_it_is_a_single_digit(factors: tuple[int, int], work: str) -> None:
    assert Multiplication().demonstration(factors, "steps").startswith(f"<think>{work}</think>")


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_every_size_in_both_orders_turns_up(difficulty: Difficulty) -> None:
    sizes = set()
    for sample in Multiplication().samples(500, 1, difficulty=difficulty):
        _, first, _, second = sample.prompt_text.rstrip(".").split()
        assert int(first) * int(second) == int(sample.answer or "")
        sizes.add((len(first), len(second)))
    assert sizes == {order for size in DIGITS[difficulty] for order in (size, size[::-1])}


def test_both_orders_of_a_product_are_in_the_same_part() -> None:
    task = Multiplication()
    for first in range(10, 40):
        assert part_of(task.canonical((first, 73))) == part_of(task.canonical((73, first)))


@pytest.mark.parametrize("wrong", ["1693", "-1692", "47*36", "1410+282", "169", ""])
def test_another_value_or_the_product_itself_is_wrong(wrong: str) -> None:
    task = Multiplication()
    sample = task._sample((47, 36), "in", "steps")
    assert task.verify(sample, "<answer>1,692</answer>").value == 1
    assert task.verify(sample, f"<answer>{wrong}</answer>").value == 0
