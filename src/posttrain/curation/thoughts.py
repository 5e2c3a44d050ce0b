"""Reasoning traces that do not support their answers, or none: what the model did right before it learns by reward."""

from dataclasses import replace
from typing import Literal

import numpy as np

from posttrain.curation.curation import curations
from posttrain.data import Sample
from posttrain.errors import UserError

OPENING, CLOSING = "<think>", "</think>"
_SHUFFLE = 0x5455  # a train stage's order is drawn from the same seed


@curations.register("thoughts")
def thoughts(samples: list[Sample], seed: int, *, change: Literal["shuffled", "swapped", "stripped"]) -> list[Sample]:
    """Change what stands between `<think>` and `</think>` in each response; the answer behind it stays right.

    - `shuffled`: the lines of the thought in another order; a thought of equal lines, or of one, stays as it is.
    - `swapped`: the thought of another sample: sound steps, and nothing to do with the question.
    - `stripped`: no thought, and no tags: only what stands behind them.

    The starts that weak supervision does not repair (arXiv 2604.18574, section 4): the paper strips thinking traces,
    and compares models by whether their steps support their answers; shuffled and swapped steps are sheet 13's.
    """
    rng = np.random.default_rng([seed, _SHUFFLE])
    cut = [_cut(sample) for sample in samples]
    if change == "stripped":
        return [_written(sample, behind.lstrip()) for sample, (_, _, behind) in zip(samples, cut, strict=True)]
    if change == "shuffled":
        changed = [_shuffled(thought, rng) for _, thought, _ in cut]
    else:
        order = rng.permutation(len(cut)).tolist()
        source = dict(zip(order, order[1:] + order[:1], strict=True))
        changed = [cut[source[index]][1] for index in range(len(cut))]
    return [
        _written(sample, f"{before}{OPENING}{thought}{CLOSING}{behind}")
        for sample, thought, (before, _, behind) in zip(samples, changed, cut, strict=True)
    ]


def _cut(sample: Sample) -> tuple[str, str, str]:
    """What stands before, inside and behind the tags."""
    before, opened, rest = sample.response_text.partition(OPENING)
    thought, closed, behind = rest.rpartition(CLOSING)
    if not opened or not closed or not behind.strip():
        raise UserError(
            f"curation 'thoughts': the response of sample {sample.id} is not of the form {OPENING}...{CLOSING}answer; "
            f"found {sample.response_text[:60]!r}"
        )
    return before, thought, behind


def _shuffled(thought: str, rng: np.random.Generator) -> str:
    lines = thought.split("\n")
    if len(set(lines)) < 2:
        return thought
    shuffled = lines
    while shuffled == lines:
        shuffled = [lines[place] for place in rng.permutation(len(lines))]
    return "\n".join(shuffled)


def _written(sample: Sample, text: str) -> Sample:
    first, *later = sample.response
    return replace(sample, response=({**first, "content": text}, *later))
