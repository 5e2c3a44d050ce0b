"""Samples scored by models, and chosen by their scores."""

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from posttrain.curation.curation import Models, curations
from posttrain.data import Sample
from posttrain.errors import UserError


@curations.register("reference_scores")
def reference_scores(
    samples: list[Sample], seed: int, models: Models, *, scalar: str = "reference_score", ends: bool = True
) -> list[Sample]:
    """Give every sample the mean log-prob per response token, averaged over the stage's models, as a scalar.

    r̄ = (1/M) Σ_j (1/T_j) Σ_t log p_j(y_t), each model with its own tokenizer and template (nats a token). `ends` counts
    the token that ends a turn, as the loss on the same data does; the authors of PoFT leave it out. A sample that any
    model cannot read is left out. `scalar`: its name; `poft` reads `reference_score`. PoFT (arXiv 2412.12865, eq. 6).
    """
    found = [model.logprobs(samples, ends=ends) for model in models.values()]
    scored = []
    for sample, logprobs in zip(samples, zip(*found, strict=True), strict=True):
        means = [float(values.mean(dtype=np.float64)) for values in logprobs if values is not None and len(values)]
        if len(means) == len(models):
            scored.append(replace(sample, scalars={**sample.scalars, scalar: float(np.mean(means))}))
    return scored


@curations.register("top")
def top(
    samples: list[Sample],
    seed: int,
    *,
    by: str,
    share: Annotated[float, Field(gt=0, le=1)] | None = None,
    count: Annotated[int, Field(ge=1)] | None = None,
    lowest: bool = False,
) -> list[Sample]:
    """Keep the `share` (or `count`) of samples whose scalar `by` is greatest, in their old order.

    Of equal ones the first. `lowest` keeps the other end. Raises `UserError` where a sample has no such scalar.
    """
    if (share is None) == (count is None):
        raise UserError("curation 'top': give either 'share' or 'count'")
    lacking = [sample.id for sample in samples if by not in sample.scalars]
    if lacking:
        raise UserError(
            f"curation 'top': {len(lacking)} of {len(samples)} samples have no scalar '{by}', such as {lacking[0]}; "
            "'reference_scores' before it makes one, and data read those that their 'scalars' name"
        )
    kept = count if count is not None else round((share or 0.0) * len(samples))
    values = np.array([sample.scalars[by] for sample in samples])
    order = np.argsort(values if lowest else -values, kind="stable")
    return [samples[index] for index in sorted(order[:kept])]
