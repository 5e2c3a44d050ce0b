"""Weights of the parts of an answer: what stands before a mark counts more, or less, than what stands behind it."""

from bisect import bisect_left
from collections.abc import Sequence as List
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.sources.places import places
from posttrain.sources.rollout import written
from posttrain.sources.transforms import transform

Factor = Annotated[float, Field(ge=0)]


@transform("segment_weights")
def segment_weights(
    sequences: List[Sequence],
    step: Step,
    *,
    marks: list[str],
    before: Factor = 1.0,
    behind: Factor = 1.0,
    unmarked: Literal["before", "behind"] = "before",
    column: str = "advantage",
) -> list[Sequence]:
    """Multiply a column by `before` up to the first mark of an answer, and by `behind` from there on.

    `marks` in the order of preference: the second is looked for where the first is not there at all. An answer without
    any is as a whole what `unmarked` says: a plan that was cut off, as in the authors' code, or, where the questions
    bring their plans along, the execution. The mark belongs to what is behind it. Of the explore-execute chain (arXiv
    2509.23946): `{name: segment_weights, marks: ["</EXPLORATION>", "<EXECUTION>"], before: 2}`; the loss is not divided
    by the weights, so that they change the size of the gradient too. Raises `UserError` where a sequence has no such
    column.
    """
    if not marks or not all(marks):
        raise UserError(f"transform 'segment_weights': 'marks' must be texts, at least one, found {marks}")
    weigh = partial(_weighed, step=step, marks=marks, before=before, behind=behind, unmarked=unmarked, column=column)
    return [weigh(sequence) for sequence in sequences]


def _weighed(
    sequence: Sequence, *, step: Step, marks: list[str], before: float, behind: float, unmarked: str, column: str
) -> Sequence:
    if column not in sequence.columns:
        raise UserError(
            f"transform 'segment_weights': sample {sequence.sample_id} has no column '{column}'; rollouts give "
            "'advantage', and other transforms give theirs before this one"
        )
    own = np.flatnonzero(written(sequence) | sequence.target)
    text, starts = places(sequence.tokens[own].tolist(), step.policy.tokenizer)
    found = next((place for place in map(text.find, marks) if place >= 0), len(text))
    # a token that holds the mark's first character belongs to what is behind
    first = bisect_left(starts, found + 1) - 1 if found < len(text) else len(own) * (unmarked == "before")
    weights = np.ones(len(sequence), np.float32)
    weights[own] = np.where(np.arange(len(own)) < first, before, behind)
    return replace(sequence, columns={**sequence.columns, column: sequence.columns[column] * weights})
