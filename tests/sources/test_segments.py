"""Weights of the parts of an answer, on real tokens."""

from types import SimpleNamespace

import architectures
import numpy as np
import pytest
from transformers import AutoTokenizer

from posttrain.data import Origin, Sequence
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.policy import model_path
from posttrain.sources import build_transform

TINY = AutoTokenizer.from_pretrained(model_path("tiny"))
BYTES = architectures.tokenizer()
MARKS = ["</think>", "<answer>"]


def answer(text, tokenizer, **columns):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = np.array([7, 8, *ids], np.int32)
    own = np.arange(len(tokens)) >= 2
    return Sequence(
        tokens,
        own,
        np.where(own, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8),
        "sample",
        columns={"advantage": own.astype(np.float32), **columns},
    )


def weights(text, tokenizer=TINY, **options):
    """Each token of the answer with its weight."""
    step = Step(policy=SimpleNamespace(tokenizer=tokenizer))
    spec = {"name": "segment_weights", "marks": MARKS, "before": 2.0, **options}
    (found,) = build_transform(spec)([answer(text, tokenizer)], step)
    return list(zip(found.tokens[2:].tolist(), found.columns["advantage"][2:].tolist(), strict=True))


def heavy(found, tokenizer=TINY):
    return tokenizer.decode([token for token, weight in found if weight == 2])


@pytest.mark.parametrize("tokenizer", [TINY, BYTES], ids=["tiny", "bytes"])
def test_what_is_before_the_mark_weighs_more_and_the_mark_does_not(tokenizer):
    found = weights("<think>1+2=3</think><answer>3</answer>", tokenizer)
    assert heavy(found, tokenizer) == "<think>1+2=3"
    assert {weight for _, weight in found} == {1, 2}


def test_the_preferred_mark_counts_where_it_is_there_though_another_comes_first():
    assert heavy(weights("1<answer>2</think>3")) == "1<answer>2"
    assert heavy(weights("1<answer>2")) == "1"


def test_without_a_mark_all_is_before_it():
    assert {weight for _, weight in weights("1+2")} == {2}
    assert {weight for _, weight in weights("</think>1")} == {1}


def test_weights_of_1_change_nothing():
    assert {weight for _, weight in weights("1</think>2", before=1.0)} == {1}


def test_a_column_that_is_not_there_and_empty_marks_are_refused():
    with pytest.raises(UserError, match="no column 'weight'"):
        weights("1", column="weight")
    with pytest.raises(UserError, match="'marks' must be texts"):
        weights("1", marks=[""])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("56</plan>7", [2, 2, 1, 1]),
        ("5<execute></plan>7", [2, 2, 1, 1]),  # </plan> counts, although <execute> is earlier
        ("56<execute>7", [2, 2, 1, 1]),
        ("56", [2, 2]),
    ],
)
def test_golden_weights_of_explore_and_execute(text, expected):
    marks = ["</plan>", "<execute>"]
    assert [weight for _, weight in weights(text, marks=marks)] == expected
    assert {weight for _, weight in weights(text, marks=marks, before=1.0)} == {1}


def test_where_plans_are_given_an_answer_without_a_mark_is_the_execution():
    assert {weight for _, weight in weights("1+2=3", unmarked="behind")} == {1}
    assert heavy(weights("1</think>2", unmarked="behind")) == "1"
