"""Likelihood with a weight for each token: what the model's own probability says of how much a token should teach.

All of them but `focal` hold the weight fixed (a stop-gradient, written sg below): with a gradient through the weight a
loss like -p log p has the same value and pushes improbable tokens down.
"""

import math
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import ENTROPY_METRIC, REFERENCE_LOGPROBS, Chunk, Need, TokenScores
from posttrain.data.step import Step
from posttrain.data.uncertainty import uncertainty_ranks
from posttrain.errors import UserError
from posttrain.objectives.objective import Prepare, TermLoss, objective
from posttrain.objectives.reduction import Measure

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, le=1)]


def weighted_nll(weight: Tensor, logprobs: Tensor) -> Tensor:
    """-weight · log p  `[N]`, and 0 where the weight is 0, at p = 0 too."""
    return torch.where(weight == 0, 0.0, -weight * logprobs)


@objective("dft")
def dft(scores: TokenScores, batch: Batch) -> TermLoss:
    """Dynamic fine-tuning: likelihood weighted by the token's own probability.

    ℓ_t = -sg(p_t) log p_t  `[N]`; mean over tokens, not divided by the sum of the weights.

    arXiv 2508.05629; the authors' code and sheet 36 agree. Improbable tokens (new facts, new formats) barely learn. The
    loss may rise while training succeeds, because the weights grow: follow `nll`. Metric: `weight` `[N]`, sg(p_t).
    """
    weight = scores.logprobs.detach().exp()
    return weighted_nll(weight, scores.logprobs), {"weight": weight}


@objective("focal")
def focal(scores: TokenScores, batch: Batch, *, gamma: NonNegative = 2.0, detach_weight: bool = False) -> TermLoss:
    """Focal loss: tokens that the model knows already weigh less.

    ℓ_t = -(1 - p_t)^γ log p_t  `[N]`, γ = `gamma`; 0 is plain likelihood.

    Lin et al. (arXiv 1708.02002, equation 4), where the gradient runs through the weight too. `detach_weight` holds it
    fixed, which makes it a token weight like those beside it: so does an ablation of CHORD (arXiv 2508.11408, appendix,
    by sheet 43), which found it unstable. Metric: `weight` `[N]`.
    """
    # 1 - p from expm1, kept off 0: the gradient of a power below 1 has no value there, and is multiplied by 0.
    missing = (-torch.expm1(scores.logprobs)).clamp(min=torch.finfo(torch.float32).tiny)
    weight = missing**gamma
    metrics = {"weight": weight.detach()}
    return -(weight.detach() if detach_weight else weight) * scores.logprobs, metrics


UNCERTAINTY = "uncertainty_rank"


def _rank_uncertainty(sequences: List[Sequence], step: Step) -> List[Sequence]:
    """Column `uncertainty_rank`, see `uncertainty_ranks`."""
    ranks = uncertainty_ranks(sequences, step)
    return [replace(s, columns={**s.columns, UNCERTAINTY: rank}) for s, rank in zip(sequences, ranks, strict=True)]


def _phi_needs(*, by: str, **_: float) -> tuple[Need, ...]:
    return (ENTROPY_METRIC,) if by == "entropy" else ()


def _phi_prepare(*, by: str, **_: float) -> Prepare | None:
    return _rank_uncertainty if by == "entropy_top" else None


@objective("chord_phi", needs=_phi_needs, prepare_for=_phi_prepare)
def chord_phi(
    scores: TokenScores,
    batch: Batch,
    *,
    by: Literal["phi", "importance", "entropy", "entropy_top"] = "phi",
    share: Probability = 0.05,
    cutoff: Probability = 1.0,
) -> TermLoss:
    """The token weights of CHORD-φ on demonstrations: neither known nor nearly impossible tokens teach much.

    ℓ_t = -sg(p_t (1 - p_t)) log p_t  `[N]`; mean over tokens, not divided by the sum of the weights.

    arXiv 2508.11408, by sheet 43 and the authors' code (Trinity-RFT), which agree. `cutoff` c < 1 is a switch of the
    code alone: log p_t is replaced by min(log p_t, log c), so that tokens above it have no gradient; the weight still
    reads p_t. The loss is at most 0.26 a token, so the learning rate (or the term's `weight`) of plain likelihood is
    not that of φ.

    The weights that the paper's appendix sets against φ: `by: importance` is p_t (that is `dft`), with `cutoff: 0.4`
    its clipped form; `entropy` is H(π_t) in nats (the paper says in proportion to it, not by which factor);
    `entropy_top` is 1 on the `share` of the step's demonstrated tokens with the highest H(π_t), else 0 (one more
    forward pass of the demonstrations; tokens of another origin weigh 0). Its focal weights are those of `focal` with
    `detach_weight`. Metric: `weight` `[N]`.
    """
    logprobs = scores.logprobs
    p = logprobs.detach().exp()
    if by == "phi":
        factor = p * -torch.expm1(logprobs.detach())
    elif by == "entropy_top":
        factor = (batch.column(UNCERTAINTY) < share).to(p.dtype)
    else:
        factor = p if by == "importance" else scores[ENTROPY_METRIC.name]
    if cutoff < 1:
        logprobs = logprobs.clamp(max=math.log(cutoff))
    return weighted_nll(factor, logprobs), {"weight": factor}


def _iw_needs(
    *, ratio: Literal["sequence", "token"], scale: float, clip: tuple[float, float] | None
) -> tuple[Need, ...]:
    if clip is not None and clip[0] > clip[1]:
        raise UserError(f"objective 'iw_sft': 'clip' must be [lowest, highest], found {list(clip)}")
    return (REFERENCE_LOGPROBS,)


@objective("iw_sft", needs=_iw_needs)
def iw_sft(
    scores: TokenScores,
    batch: Batch,
    *,
    ratio: Literal["sequence", "token"] = "sequence",
    scale: Positive = 1.0,
    clip: tuple[NonNegative, Positive] | None = None,
) -> TermLoss:
    """Importance-weighted SFT on curated data: a tighter bound of the reward than likelihood is.

    ℓ_t = -sg(w) log p_t  `[N]`;  w = clip(exp(κ · mean_t (log p_t - log π_0,t)))  for the whole sequence, or
    clip(exp(κ (log p_t - log π_0,t))) for each token (`ratio: token`);  κ = `scale`, π_0 the reference.

    Qin and Springenberg (arXiv 2507.12856). The formula is that of the authors' code (emmyqin/iw_sft), which has
    `clip` [0, 16] for sequences and [0.2, 1.8] for tokens, the defaults here, and no κ in the second form. Sheet 52 has
    this loss from memory only. There the ratio's denominator is the policy that wrote the data; here and in the code it
    is the model before fine-tuning, so that the first step is plain SFT. In the code one weight is right for a single
    sequence a micro-batch only; here each sequence has its own. Metric: `weight` `[N]`.
    """
    difference = (scores.logprobs - scores["reference_logprobs"]).detach()
    if ratio == "sequence":
        difference = batch.mean_by_sequence(difference)[batch.sequence]
    low, high = clip or ((0.0, 16.0) if ratio == "sequence" else (0.2, 1.8))
    weight = (scale * difference).exp().clamp(low, high)
    return weighted_nll(weight, scores.logprobs), {"weight": weight}


def _others_logprob(chunk: Chunk) -> Tensor:
    others = chunk.logits.scatter(-1, chunk.tokens[:, None], -torch.inf)
    return torch.logsumexp(others, -1) - torch.logsumexp(chunk.logits, -1)


OTHERS_LOGPROB = Need("others_logprob", _others_logprob)
"""log(1 - π(token)), exact for a token that is all but certain, where 1 - exp(log p) has lost every digit."""


def _mark_tokens(sequences: List[Sequence], step: Step) -> List[Sequence]:
    """Scalars become columns, so that a micro-batch may hold sequences with either."""

    def marked(sequence: Sequence) -> Sequence:
        if "negative" in sequence.columns or "negative" not in sequence.scalars:
            return sequence
        column = np.full(len(sequence), sequence.scalars["negative"], np.float32)
        return replace(sequence, columns={**sequence.columns, "negative": column})

    return [marked(sequence) for sequence in sequences]


def _check_marked(sequences: List[Sequence], measures: List[Measure]) -> None:
    for sequence, measure in zip(sequences, measures, strict=True):
        if measure.any() and "negative" not in (*sequence.columns, *sequence.scalars):
            raise UserError(
                f"objective 'unlikelihood': sample {sequence.sample_id} does not say whether it is bad: give every one "
                "the scalar 'negative' (1 bad, 0 good), or the column 'negative' to mark single tokens"
            )


@objective("unlikelihood", needs=(OTHERS_LOGPROB,), prepare=_mark_tokens, check=_check_marked)
def unlikelihood(scores: TokenScores, batch: Batch, *, negative_weight: NonNegative = 1.0) -> Tensor:
    """Likelihood on good responses, unlikelihood on bad ones.

    ℓ_t = -log p_t where a token is good;  -α log(1 - p_t) where it is bad  `[N]`;  α = `negative_weight`. Mean over
    good and bad tokens together.

    Which are bad is said by the column `negative` `[N]` (1 bad, 0 good, token by token), or where it lacks that by the
    scalar `negative` `[S]` (1 the whole response, 0 none of it). Every sequence that counts must carry one of them.

    Welleck et al. (arXiv 1908.04319, equation 4), with the bad token itself as the only candidate; their candidates are
    earlier tokens of a good text. Their code clamps 1 - p at 1e-5, where the most certain mistakes have no gradient;
    log(1 - p) is exact here and needs no clamp.
    """
    return torch.where(_negative(batch), -negative_weight * scores["others_logprob"], -scores.logprobs)


def _negative(batch: Batch) -> Tensor:
    if "negative" in batch.columns:
        return batch.columns["negative"] > 0
    return batch.scalar("negative")[batch.sequence] > 0
