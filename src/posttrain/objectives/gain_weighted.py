"""Likelihood with a weight for each sample: how much its loss fell since its last visit."""

from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from posttrain.data import Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import Need, TokenScores
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.reduction import Reduction

NonNegative = Annotated[float, Field(ge=0)]
REMEMBERED = "sample_loss"
"""The metric that is kept by sample id."""
PREVIOUS = "previous_loss"
"""The scalar in which `prepare` hands it to the next visit."""


def _recall(sequences: List[Sequence], step: Step) -> List[Sequence]:
    """Every sequence's loss at its last visit; the mean of the step's losses now for samples without one."""
    if _is_first_epoch(step):
        return sequences
    history = step.memory.get(REMEMBERED, {})
    unseen = any(sequence.sample_id not in history for sequence in sequences)
    mean = _mean_loss(sequences, step) if any(step.gather(unseen)) else 0.0
    return [
        replace(sequence, scalars={**sequence.scalars, PREVIOUS: history.get(sequence.sample_id, mean)})
        for sequence in sequences
    ]


def _mean_loss(sequences: List[Sequence], step: Step) -> float:
    """Over the sequences of all ranks that have a target."""
    own = [-float(scores.logprobs.mean()) for scores in step.score(sequences, ()) if len(scores.logprobs)]
    found: list[float] = [loss for share in step.gather(own) for loss in share]
    return sum(found) / max(1, len(found))


def _is_first_epoch(step: Step) -> bool:
    return step.epoch < 1


def _glow_needs(*, clip: tuple[float, float], **_: float) -> tuple[Need, ...]:
    if clip[0] > clip[1]:
        raise UserError(f"objective 'glow': 'clip' must be [lowest, highest], found {list(clip)}")
    return ()


@objective(
    "glow",
    needs=_glow_needs,
    level="sequence",
    reduction=Reduction("sequences"),
    prepare=_recall,
    remember=(REMEMBERED,),
)
def glow(
    scores: TokenScores,
    batch: Batch,
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 20.0,
    clip: tuple[NonNegative, NonNegative] = (0.5, 5.0),
    offset: NonNegative = 0.0,
) -> TermLoss:
    """GLOW, gain-based loss weighting: samples whose loss falls slowly weigh more than those whose loss falls fast.

    ℓ_i = sg(w_i) · mean_t(-log p_t)  `[S]`;  w_i = clip(o + α σ(-β Δ_i));  Δ_i = H[i] - sg(mean_t(-log p_t)).

    H[i] is the sample's own loss when it was last visited, an epoch before; α = `alpha`, β = `beta`, o = `offset`. Mean
    over the sequences of the step, not divided by the weights. In the first epoch w = 1. A sample that comes for the
    first time later has the mean of the step's losses for H (one more forward pass, in such steps alone).

    arXiv 2601.04992, by sheet 30; the weight is that of the authors' code (the paper's text was not read): α = 1 and
    β = 20 for mathematics, α ∈ {1, 2} with β in 10 to 30 swept there, β = 5 for knowledge, clip [0.5, 5] constant.
    `offset: 1` is a form that is commented out in that code. With α = 1 a sample without gain weighs 1/2: as if the
    learning rate were halved. To compare at the same rate, give the term `weight: 2`, or take α = 2. The released
    fallback for an unseen sample is the mean of its micro-batch on one device; here it is that of the whole step, so
    that it does not depend on how the step is cut. Dropout is noise in Δ.

    Metrics `[S]`: `sample_loss` (unweighted), `weight`, and from the second epoch `gain` (Δ) and `regressed` (Δ < 0).
    """
    loss = batch.mean_by_sequence(-scores.logprobs)
    metrics = {REMEMBERED: loss.detach()}
    if _is_first_epoch(batch.step):
        return loss, {**metrics, "weight": torch.ones_like(metrics[REMEMBERED])}
    gain = batch.scalar(PREVIOUS) - loss.detach()
    weight = (offset + alpha * torch.sigmoid(-beta * gain)).clamp(*clip)
    return weight * loss, {**metrics, "weight": weight, "gain": gain, "regressed": (gain < 0).float()}
