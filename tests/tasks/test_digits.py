import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import UserError
from posttrain.tasks.digits import Digits, Operation

OPERATIONS: list[Operation] = ["reverse", "sort", "rotate"]


@pytest.mark.parametrize(("operation", "answer"), [("reverse", "91704"), ("sort", "01479"), ("rotate", "07194")])
def test_each_operation_asks_and_answers(operation: Operation, answer: str) -> None:
    task = Digits(operation=operation)
    assert task.prompt("40719") == f"{operation.title()} 40719."
    assert task.demonstration("40719", "direct") == f"<answer>{answer}</answer>"


def test_a_leading_zero_counts() -> None:
    task = Digits(operation="sort")
    sample = task._sample("40719", "in", "direct")
    assert task.verify(sample, "<answer>01479</answer>").value == 1
    assert task.verify(sample, "<answer>1479</answer>").value == 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), operation=st.sampled_from(OPERATIONS))
def test_every_demonstration_is_right_and_has_as_many_digits(seed: int, operation: Operation) -> None:
    task = Digits(operation=operation)
    for sample in task.samples(20, seed):
        assert task.verify(sample, sample.response_text).value == 1
        assert 3 <= len(sample.answer or "") == sample.meta["length"] <= 5


def test_no_operation_trains_on_digits_that_another_is_tested_on() -> None:
    drawn = {part: {s.prompt_text.split()[1] for o in OPERATIONS
                    for s in Digits(operation=o, lengths=(2, 3), part=part).samples(60, 0)}
             for part in ("train", "test")}  # fmt: skip
    assert not drawn["train"] & drawn["test"]


def test_lengths_that_make_no_problem_are_refused() -> None:
    with pytest.raises(UserError, match="give the fewest"):
        Digits(lengths=(5, 4))
