"""Traces whose steps do not support their answers."""

from typing import Any

import pytest

from posttrain.curation import curations
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError
from posttrain.tasks.chains import Chains


def curated(samples: list[Sample], seed: int = 0, **options: Any) -> list[Sample]:
    kind, checked = curations.options({"name": "thoughts", **options})
    return curations[kind](samples, seed, **checked)


def written(*thoughts: str) -> list[Sample]:
    return [
        Sample((user(f"question {n}"),), (assistant(f"<think>{thought}</think><answer>{n}</answer>"),))
        for n, thought in enumerate(thoughts)
    ]


def test_shuffled_lines_are_the_same_lines_in_another_order() -> None:
    before = written("1\n2\n3", "1\n2", "1", "2\n2")
    after = [sample.response_text for sample in curated(before, change="shuffled")]
    assert after[0] != before[0].response_text
    assert sorted(after[0]) == sorted(before[0].response_text)
    assert after[1:] == [
        "<think>2\n1</think><answer>1</answer>",
        *(sample.response_text for sample in before[2:]),
    ]


def test_swapped_thoughts_come_from_other_samples_each_once() -> None:
    before = written(*"abcdefg")
    after = curated(before, change="swapped")
    thoughts = [sample.response_text[7] for sample in after]
    assert sorted(thoughts) == list("abcdefg")
    assert all(thought != own for thought, own in zip(thoughts, "abcdefg", strict=True))
    assert [text.response_text.partition("</think>")[2] for text in after] == [
        text.response_text.partition("</think>")[2] for text in before
    ]


def test_stripped_thoughts_leave_the_answer_alone() -> None:
    assert curated(written("a\nb"), change="stripped")[0].response_text == "<answer>0</answer>"


@pytest.mark.parametrize("change", ["shuffled", "swapped", "stripped"])
def test_the_answer_stays_right_and_the_steps_do_not_lead_to_it(change: str) -> None:
    task = Chains(terms=(3, 4))
    samples = task.samples(100, 0)
    scores = [task.verify(sample, sample.response_text) for sample in curated(samples, change=change)]
    assert all(score.value == 1 for score in scores)
    assert sum(score.parts["faithful"] for score in scores) <= 1
    assert curated(samples, change=change) == curated(samples, change=change)


@pytest.mark.parametrize("text", ["<answer>1</answer>", "<think>1</think>", "<think>1<answer>1</answer>"])
def test_a_response_without_a_thought_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not of the form <think>"):
        curated([Sample((user("q"),), (assistant(text),))], change="shuffled")
