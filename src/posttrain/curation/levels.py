"""Levels: how long an answer may be, said in its prompt, so that one model learns several lengths."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from posttrain.curation.curation import curations
from posttrain.data import Sample
from posttrain.errors import UserError, nearest

INSTRUCTIONS = {"short": "Think briefly.", "medium": "Think normally.", "long": "Think at length."}
_LEVELS = 0x4C56  # a train stage's order is drawn from the same seed


@curations.register("levels")
def levels(
    samples: list[Sample],
    seed: int,
    *,
    instructions: dict[str, str] = INSTRUCTIONS,
    level: str | None = None,
    separator: str = "\n",
) -> list[Sample]:
    """Write an instruction behind the last user turn of each prompt, and its level into `meta["level"]`.

    The level of each sample is drawn uniformly, by the seed; `level`: all get that one, as evaluations want. All
    answers to a prompt share its level, which the reward `tldr` reads. TLDR (arXiv 2505.07961); the wording is ours.
    """
    if level is not None and level not in instructions:
        raise UserError(f"curation 'levels', option 'level': {nearest(level, instructions)}")
    if not instructions:
        raise UserError("curation 'levels', option 'instructions' is empty: give each level's name its instruction")
    names = list(instructions)
    drawn = np.random.default_rng([seed, _LEVELS]).integers(len(names), size=len(samples))
    chosen = [names[index] for index in drawn] if level is None else [level] * len(samples)
    return [_marked(sample, name, separator + instructions[name]) for sample, name in zip(samples, chosen, strict=True)]


def _marked(sample: Sample, level: str, text: str) -> Sample:
    if not sample.prompt or sample.prompt[-1].get("role") != "user":
        raise UserError(f"curation 'levels': the prompt of sample {sample.id} does not end with a user's turn")
    last: Mapping[str, object] = sample.prompt[-1]
    turn = {**last, "content": f"{last['content']}{text}"}
    return replace(sample, prompt=(*sample.prompt[:-1], turn), meta={**sample.meta, "level": level})
