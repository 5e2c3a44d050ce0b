"""Answers whose end is not trained."""

from types import SimpleNamespace

import numpy as np
import pytest

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.sources import build_transform

STEP = Step(policy=SimpleNamespace(tokenizer=SimpleNamespace(all_special_ids=[0, 9])))


@pytest.mark.parametrize(
    ("tokens", "left"), [([5, 6, 7, 9], [5, 6, 7]), ([5, 9, 7, 9, 0], [5, 9, 7]), ([5, 6], [5, 6]), ([9, 9], [9])]
)
def test_special_tokens_are_cut_off_the_end_and_nothing_else(tokens: list[int], left: list[int]) -> None:
    target = np.arange(len(tokens)) > 0
    column = np.arange(len(tokens), dtype=np.float32)
    whole = Sequence(
        np.array(tokens, np.int32), target, target.astype(np.uint8), "a", inputs=np.ones(len(tokens), np.int32),
        columns={"weight": column}, scalars={"reward": 2.0},
    )  # fmt: skip
    (found,) = build_transform("open_ended")([whole], STEP)
    assert found.tokens.tolist() == left
    assert found.target.tolist() == target[: len(left)].tolist()
    assert found.columns["weight"].tolist() == column[: len(left)].tolist()
    assert found.inputs is not None
    assert (len(found.inputs), len(found.origin), found.scalars) == (len(left), len(left), {"reward": 2.0})
