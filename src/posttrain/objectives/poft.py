"""Preference-Oriented Supervised Fine-Tuning: the model against aligned models on the same response."""

from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from posttrain.data.batch import Batch
from posttrain.data.scores import TokenScores
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.reduction import Reduction


@objective("poft", level="sequence", reduction=Reduction("sequences"), scalars=("reference_score",))
def poft(
    scores: TokenScores, batch: Batch, *, beta: Annotated[float, Field(gt=0)] = 1.0, gamma: float = 0.0
) -> TermLoss:
    """PoFT: prefer this model's score of a response to the score that aligned models gave it.

    ℓ = -log σ(β (r_θ - r̄) + γ)  `[S]`;  r_θ = mean over a sequence's target tokens of log p_t;  r̄ = the scalar
    `reference_score` `[S]`, the mean over aligned models of theirs. Mean over sequences, whatever their lengths.

    The gradient is that of the sequence's mean likelihood times τ = β σ(-β (r_θ - r̄) - γ): near 0 for responses that
    the aligned models find implausible, so noise is switched off softly. τ falls as the model improves.

    arXiv 2412.12865, equations 5 to 8; β = 1 and γ = 0 in the paper, hard-wired in the authors' code. The code averages
    r_θ over all tokens, prompt and template included, against r̄ over the response's; the paper's mean over the
    response is followed (to have the code's: `transforms: [every_token]`). r̄ must be scored on the same text.
    `origins` says which sequences count, not which tokens r_θ averages. Metrics `[S]`: `tau`, `score` (r_θ),
    `reference_score`.
    """
    reference = batch.scalar("reference_score")
    score = batch.mean_by_sequence(scores.logprobs)
    margin = beta * (score - reference) + gamma
    tau = beta * torch.sigmoid(-margin.detach())
    return F.softplus(-margin), {"tau": tau, "score": score.detach(), "reference_score": reference}
