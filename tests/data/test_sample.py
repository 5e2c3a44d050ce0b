import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import Sample, assistant, user

SAMPLE = Sample(prompt=(user("2+2?"),), response=(assistant("4"),), answer="4", task="sums")

TURNS = st.lists(st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from("ua"), st.text()))
SAMPLES = st.builds(
    Sample,
    prompt=TURNS.map(tuple),
    response=TURNS.map(tuple),
    rejected=TURNS.map(tuple),
    answer=st.none() | st.text(),
    task=st.text(max_size=5),
    tools=st.lists(st.dictionaries(st.text(max_size=3), st.integers())).map(tuple),
    meta=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3)),
)


@given(SAMPLES)
def test_a_sample_written_as_json_is_read_back_equal(sample: Sample) -> None:
    read = Sample.from_json(sample.to_json())
    assert read == sample
    assert read.id == sample.id


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": (user("2+3?"),)},
        {"response": (assistant("5"),)},
        {"rejected": (assistant("5"),)},
        {"answer": "5"},
        {"answer": None},
        {"task": "products"},
        {"tools": ({"name": "calculator"},)},
        {"images": (b"pixels",)},
    ],
)
def test_an_id_changes_with_everything_that_is_content(change: dict[str, Any]) -> None:
    assert replace(SAMPLE, **change).id != SAMPLE.id


def test_an_id_does_not_change_with_meta_or_the_order_of_keys() -> None:
    turned = {"content": "2+2?", "role": "user"}
    assert replace(SAMPLE, meta={"style": "long"}, prompt=(turned,)).id == SAMPLE.id


def test_an_id_is_the_same_in_every_process() -> None:
    code = "from posttrain.data import *; print(Sample((user('ä?'),), answer='1', tools=({'b': 1, 'a': 2},)).id)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == Sample((user("ä?"),), answer="1", tools=({"a": 2, "b": 1},)).id
    assert len(found) == 16


def test_all_responses_to_a_question_share_its_prompt_id() -> None:
    other = replace(SAMPLE, response=(assistant("five"),), answer="5")
    assert other.prompt_id == SAMPLE.prompt_id
    assert replace(SAMPLE, task="products").prompt_id != SAMPLE.prompt_id


def test_images_are_told_apart_by_their_pixels() -> None:
    dark, light = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)
    ids = [Sample((user("?"),), images=(image,)).id for image in (dark, light, dark.copy())]
    assert ids[0] == ids[2] != ids[1]


def test_texts_of_a_sample_are_its_last_question_and_its_first_answer() -> None:
    sample = Sample((user("hello"), assistant("hi"), user("2+2?")), response=(assistant("4"), user("thanks")))
    assert (sample.prompt_text, sample.response_text) == ("2+2?", "4")
    assert Sample(()).prompt_text == Sample(()).response_text == ""
    assert Sample((), response=({"role": "assistant", "content": None, "tool_calls": []},)).response_text == ""
