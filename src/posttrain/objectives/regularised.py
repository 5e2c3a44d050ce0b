"""Likelihood with a hold: to a reference model, or to the width of the distribution."""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.data.batch import Batch
from posttrain.data.scores import ENTROPY, FORWARD_KL, REVERSE_KL, Chunk, Need, TokenScores
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.reweighted import weighted_nll

NonNegative = Annotated[float, Field(ge=0)]
Direction = Literal["forward", "reverse"]
Shape = Literal["linear", "logsigmoid"]


def _kl_needs(*, kl_weight: float, direction: Direction) -> tuple[Need, ...]:
    return ((FORWARD_KL if direction == "forward" else REVERSE_KL),) if kl_weight else ()


def _held(
    loss: Tensor, scores: TokenScores, kl_weight: float, direction: Direction
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss with the KL to the reference added, and the KL as a metric; the loss alone where it weighs nothing."""
    if not kl_weight:
        return loss, {}
    kl = scores[f"{direction}_kl"]
    return loss + kl_weight * kl, {f"{direction}_kl": kl.detach()}


@objective("asft", needs=_kl_needs)
def asft(
    scores: TokenScores, batch: Batch, *, kl_weight: NonNegative = 0.05, direction: Direction = "forward"
) -> TermLoss:
    """Anchored SFT: dynamic fine-tuning, held to the model that it started from.

    ℓ_t = -sg(p_t) log p_t + λ Σ_v π_0(v) (log π_0(v) - log π(v))  `[N]`;  λ = `kl_weight`, π_0 the reference.

    arXiv 2509.23753 (equation 6), by sheet 36; the authors' code and LLaMA-Factory agree. λ: paper 0.05, code 0.1
    unless told otherwise; 0 is `dft`, and needs no reference. `direction: reverse`, KL(π ‖ π_0), is the paper's
    ablation, which it found to collapse. Metrics: `weight`, sg(p_t), and `forward_kl` or `reverse_kl`, in nats, `[N]`.
    """
    weight = scores.logprobs.detach().exp()
    loss, metrics = _held(weighted_nll(weight, scores.logprobs), scores, kl_weight, direction)
    return loss, {"weight": weight, **metrics}


@objective("sft_kl", needs=_kl_needs)
def sft_kl(
    scores: TokenScores, batch: Batch, *, kl_weight: NonNegative = 0.05, direction: Direction = "forward"
) -> TermLoss:
    """Plain likelihood, held to the model that it started from.

    ℓ_t = -log p_t + λ Σ_v π_0(v) (log π_0(v) - log π(v))  `[N]`;  λ = `kl_weight`, π_0 the reference.

    The baseline of arXiv 2509.23753, by sheet 36. 0 is `nll`, and needs no reference. `direction: reverse` is
    KL(π ‖ π_0). Metric: `forward_kl` or `reverse_kl`, in nats, `[N]`.
    """
    return _held(-scores.logprobs, scores, kl_weight, direction)


@objective("sft_entropy", needs=(ENTROPY,))
def sft_entropy(scores: TokenScores, batch: Batch, *, entropy_weight: NonNegative = 0.01) -> TermLoss:
    """Plain likelihood with a bonus for entropy.

    ℓ_t = -log p_t - c H(π)  `[N]`;  c = `entropy_weight`, H over the whole vocabulary in nats.

    The entropy bonus of sheet 52 on demonstrations, after Pereyra et al. (arXiv 1701.06548). Sheet 52 gives the form
    and no c; 0.01 is a usual value, not a paper's. Metric: `entropy` `[N]`.
    """
    return -scores.logprobs - entropy_weight * scores["entropy"], {"entropy": scores["entropy"].detach()}


def _gem(chunk: Chunk, *, beta: float, shape: Shape) -> Tensor:
    chosen = chunk.tokens[:, None]
    weight = torch.softmax(chunk.logits / beta, -1)
    if shape == "logsigmoid":
        weight = weight * torch.sigmoid(0.01 * (chunk.logits - chunk.logits.gather(-1, chosen)))
    weight = weight.detach()
    logprobs = chunk.log_softmax.clamp(min=torch.finfo(weight.dtype).min)  # weight 0 counts 0, not 0 · -inf
    return (weight * logprobs).sum(-1) - weight.sum(-1) * logprobs.gather(-1, chosen).squeeze(-1)


def _gem_need(beta: float, shape: Shape) -> Need:
    """The name holds the options, so that two terms with different ones stay apart."""
    return Need(f"gem({beta}, {shape})", partial(_gem, beta=beta, shape=shape))


@objective("gem", needs=lambda *, beta, shape: (_gem_need(beta, shape),))
def gem(
    scores: TokenScores,
    batch: Batch,
    *,
    beta: Annotated[float, Field(gt=0, le=1)] = 0.7,
    shape: Shape = "logsigmoid",
) -> Tensor:
    """GEM, entropic distribution matching: likelihood gained from the tokens that the model believes in, and no others.

    ℓ_t = -Σ_v q_v w_v (log π(y_t) - log π(v))  `[N]`;  q = sg softmax(z / β);  w_v = 1 (`shape: linear`) or
    sg σ(0.01 (z_v - z_y)) (`shape: logsigmoid`).

    Li et al. (arXiv 2408.16673). Sheet 52 only names the method: the formula, β = 0.7, the log-sigmoid and its 0.01 are
    those of the authors' code (liziniu/GEM, read in copies of it); the paper's equations were not compared. The
    gradient with respect to the logits is q - e_y for `linear`: at β = 1 that of likelihood; below, it ends once y
    leads, so that the distribution stays wide. `logsigmoid` weighs about half as much (w ≈ 1/2). The loss may be
    negative.
    """
    return scores[_gem_need(beta, shape).name]
