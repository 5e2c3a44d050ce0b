"""Questions chosen by how often a model answers them rightly: those that it can learn from by trying."""

from collections import Counter
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from posttrain.curation.curation import Drawing, Models, Reply, curations
from posttrain.curation.noisy_answers import FREQUENT_WRONG
from posttrain.data import Sample
from posttrain.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]


@curations.register("right_share")
def right_share(
    samples: list[Sample],
    seed: int,
    models: Models,
    *,
    n: Annotated[int, Field(ge=1)] = 8,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    max_new_tokens: Annotated[int, Field(ge=1)] = 256,
    scalar: str = "right_share",
) -> list[Sample]:
    """Ask each question `n` times, and give it the share of right answers as a scalar.

    Right is what the verifier gives its full mark: part marks, and whatever a recipe's reward adds (for form, for
    length), make no answer right. Name the model that the training starts from, and its `temperature`, `max_new_tokens`
    and template: another model, or greedy answers, can do other questions. Over all answers of all the stage's models;
    those that cannot be scored are left out, and so is a question of which none can be. Every answer is kept in
    `samples/<stage>.jsonl`. `meta.frequent_wrong` is the wrong answer that came most often, for `noisy_answers`.
    """
    drawing = Drawing(n, temperature, max_new_tokens)
    found = [model.draw(samples, drawing) for model in models.values()]
    measured = []
    for sample, answers in zip(samples, zip(*found, strict=True), strict=True):
        scored = [reply for replies in answers for reply in replies if reply.right is not None]
        if scored:
            share = float(np.mean([reply.right for reply in scored]))
            meta = {**sample.meta, **_frequent_wrong(scored)}
            measured.append(replace(sample, scalars={**sample.scalars, scalar: share}, meta=meta))
    return measured


def _frequent_wrong(replies: List[Reply]) -> dict[str, str]:
    """The wrong answer that came most often, of equals the first; nothing where none was read."""
    counts = Counter(reply.answer for reply in replies if not reply.right and reply.answer is not None)
    return {FREQUENT_WRONG: counts.most_common(1)[0][0]} if counts else {}


@curations.register("rollout_filter")
def rollout_filter(
    samples: list[Sample], seed: int, *, drop_saturated: bool = False, by: str = "right_share"
) -> list[Sample]:
    """Rollout-based instance filtering: keep questions of which at least one answer was right.

    RIF-RFT (arXiv 2507.05386) drops the others before reinforcement learning, which has nothing to reinforce in them.
    `drop_saturated` also drops those that were always answered rightly: no answer is better than another there, and
    they give no gradient. The paper's revision speaks of "learnable samples", which may leave them out too; by default
    they are kept. Behind a step `right_share`.
    """
    shares = [_share(sample, by) for sample in samples]
    return [
        sample
        for sample, share in zip(samples, shares, strict=True)
        if share > 0 and not (drop_saturated and share == 1)
    ]


@curations.register("difficulty")
def difficulty(
    samples: list[Sample], seed: int, *, low: Share = 0.0, high: Share = 1.0, by: str = "right_share"
) -> list[Sample]:
    """Keep questions whose share of right answers lies in [`low`, `high`]. Behind a step `right_share`."""
    if low > high:
        raise UserError(f"curation 'difficulty': low {low:g} is above high {high:g}, which keeps nothing")
    return [sample for sample in samples if low <= _share(sample, by) <= high]


def _share(sample: Sample, name: str) -> float:
    if name not in sample.scalars:
        raise UserError(
            f"sample {sample.id} has no scalar '{name}': a step 'right_share' before this one measures it, and data "
            "read those that their 'scalars' name"
        )
    return sample.scalars[name]
