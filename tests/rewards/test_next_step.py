"""The likeness of a step to the demonstration's."""

import numpy as np
import pytest

from posttrain.data import Sample, assistant, user
from posttrain.rewards import Attempt, Score
from posttrain.rewards.next_step import next_step

SAMPLE = Sample((user("Compute 1+2+3."),), response=(assistant("<think>1+2=3\n3+3=6</think><answer>6</answer>"),))


def likeness(text: str, opening: str = "", **options: str) -> Score:
    nothing = np.zeros(0)
    attempt = Attempt(SAMPLE, opening + text, nothing.astype(np.int32), nothing.astype(np.float32), "stop")
    found = next_step(Attempt(**{**vars(attempt), "opening": opening}), **options)
    assert isinstance(found, Score)
    return found


def test_the_first_line_behind_the_beginning_is_compared() -> None:
    assert likeness("<think>1+2=3\nand whatever").value == 1
    assert likeness("3+3=6</think><answer>6</answer>", opening="<think>1+2=3\n").value == 1
    assert likeness("<think>1+2=3\n", opening="<think>1+2=3\n").value < 0.8


def test_golden_ratio_of_matching_characters() -> None:
    # "<think>1+2=" are 11 of the 12 characters of either line: 2 * 11 / 24
    assert likeness("<think>1+2=4").value == pytest.approx(22 / 24)
    assert likeness("").value == 0
    assert likeness("xyz").value == 0


def test_a_thought_before_the_step_earns_nothing() -> None:
    assert likeness("let me see</think>\n<think>1+2=3\n", behind="</think>").value == 1
    assert likeness("<think>1+2=3\n", behind="</think>").value == -1


def test_where_the_demonstration_has_no_next_step_there_is_no_reward() -> None:
    with pytest.raises(ValueError, match="no next step"):
        likeness("1", opening=SAMPLE.response_text)
    with pytest.raises(ValueError, match="no next step"):
        likeness("1", opening="another beginning")
