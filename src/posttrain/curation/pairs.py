"""Preference data from answers that were verified: pairs of a right and a wrong one, or a label for each answer.

Both read `value` of a sample's meta, which a generate stage (with `keep: all`) writes: 1 is right, less is wrong.
"""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from posttrain.curation.curation import FINAL_ANSWER, curations
from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards import is_right


@curations.register("pairs")
def pairs(
    samples: list[Sample], seed: int, *, per_prompt: Annotated[int, Field(ge=1)] = 1, demonstrations: bool = False
) -> list[Sample]:
    """Right answers beside wrong ones to the same question: preference pairs, at most `per_prompt` for each question.

    Questions with right answers alone, or wrong ones alone, give none. Pairs are drawn without replacement from all
    that a question has; each is one sample, with the wrong answer as `rejected`. Samples without a `value` are
    demonstrations: `demonstrations` lets them stand for right answers, else they are left out.
    """
    questions: dict[str, tuple[list[Sample], list[Sample]]] = {}
    for sample in samples:
        right, wrong = questions.setdefault(sample.prompt_id, ([], []))
        if demonstrations or "value" in sample.meta:
            (right if _is_right(sample) else wrong).append(sample)
    if not any(wrong for _, wrong in questions.values()):
        raise UserError(
            "curation 'pairs': no sample is a wrong answer: pairs are made of answers that a generate stage drew with "
            "'keep: all' (its rows say in meta.value whether they are right)"
        )
    rng = np.random.default_rng(seed)
    return [pair for right, wrong in questions.values() for pair in _drawn(right, wrong, per_prompt, rng)]


@curations.register("label")
def label(samples: list[Sample], seed: int, *, scalar: Literal["chosen", "negative"]) -> list[Sample]:
    """Give every sample the scalar that losses on single answers read: `chosen` (1 right, 0 wrong; for kto) or
    `negative` (1 wrong, 0 right; for unlikelihood). What has no `value` is a demonstration, and right.
    """
    marked = []
    for sample in samples:
        value = float(_is_right(sample) == (scalar == "chosen"))
        marked.append(replace(sample, scalars={**sample.scalars, scalar: value}))
    return marked


def _is_right(sample: Sample) -> bool:
    return is_right(float(sample.meta.get("value", 1.0)))


def _drawn(right: list[Sample], wrong: list[Sample], count: int, rng: np.random.Generator) -> list[Sample]:
    every = len(right) * len(wrong)
    if not every:
        return []
    places = rng.choice(every, size=min(count, every), replace=False).tolist()
    return [_pair(right[place // len(wrong)], wrong[place % len(wrong)]) for place in places]


def _pair(right: Sample, wrong: Sample) -> Sample:
    meta = {key: value for key, value in right.meta.items() if key not in ("value", "draw", "source_id", FINAL_ANSWER)}
    return replace(right, rejected=wrong.response, meta=meta)
