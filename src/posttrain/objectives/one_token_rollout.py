"""One-Token Rollout: every token of a demonstration as an episode of one action (arXiv 2509.26313)."""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.data.batch import Batch
from posttrain.data.scores import ENTROPY_METRIC, Chunk, Need, TokenScores
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.reduction import Reduction

Estimator = Literal["sample", "exact"]


def _tempered(chunk: Chunk, kappa: float) -> Tensor:
    """`[n, words]`: what is drawn from; a row of the head that no token has is not among it."""
    return torch.softmax(chunk.logits[:, : chunk.words] / kappa, -1)


def _sampled(chunk: Chunk, *, draws: int, beta: float, kappa: float) -> Tensor:
    """`[n, 2]`: the loss of some draws, with graph, and the share of them that hit the target."""
    with torch.no_grad():
        cumulative = _tempered(chunk, kappa).cumsum(-1, dtype=torch.float64)
        at = chunk.uniforms(draws) * cumulative[:, -1:]  # rounding leaves the sum a little off 1
        drawn = torch.searchsorted(cumulative, at, right=True).clamp(max=cumulative.shape[-1] - 1)
        hit = (drawn == chunk.tokens[:, None]).to(chunk.logits.dtype)
    reward = hit + beta * (1 - hit)
    loss = -(reward * chunk.log_softmax.gather(-1, drawn)).mean(-1)
    return torch.stack([loss, hit.mean(-1)], -1)


def _exact(chunk: Chunk, *, beta: float, kappa: float) -> Tensor:
    """`[n, 2]`: the expectation of `_sampled` over its draws, with these held fixed as there."""
    q = _tempered(chunk, kappa).detach()
    logprobs = chunk.log_softmax[:, : chunk.words]
    logprobs = logprobs.clamp(min=torch.finfo(q.dtype).min)  # what is never drawn counts 0, not 0 · -inf
    hit = q.gather(-1, chunk.tokens[:, None]).squeeze(-1)
    right = hit * logprobs.gather(-1, chunk.tokens[:, None]).squeeze(-1)
    return torch.stack([-beta * (q * logprobs).sum(-1) - (1 - beta) * right, hit], -1)


def _need(draws: int, beta: float, kappa: float, estimator: Estimator) -> Need:
    """The name holds the options, so that two terms with different ones stay apart."""
    if estimator == "exact":
        return Need(f"otr(exact, {beta}, {kappa})", partial(_exact, beta=beta, kappa=kappa))
    return Need(f"otr({draws}, {beta}, {kappa})", partial(_sampled, draws=draws, beta=beta, kappa=kappa))


@objective(
    "otr",
    needs=lambda *, draws, beta, kappa, estimator: (_need(draws, beta, kappa, estimator), ENTROPY_METRIC),
    reduction=Reduction("sequences"),
)
def otr(
    scores: TokenScores,
    batch: Batch,
    *,
    draws: Annotated[int, Field(ge=1)] = 256,
    beta: Annotated[float, Field(le=1)] = -0.1,
    kappa: Annotated[float, Field(gt=0)] = 1.3,
    estimator: Estimator = "sample",
) -> TermLoss:
    """One-Token Rollout: REINFORCE on tokens drawn from the policy, rewarded for being the demonstrated one.

    ℓ_t = -(1/K) Σ_j R_j log π(a_j)  `[N]`;  a_1..a_K ~ softmax(z_t / κ) with replacement;  R_j = 1 if a_j = y_t else β.

    K = `draws`, β = `beta`, κ = `kappa`; log π at temperature 1. Rows of the head behind the tokenizer's last token
    are not drawn. `estimator: exact` is the expectation over the draws,
    -Σ_v q_v R_v log π(v) with q = sg softmax(z_t / κ): no noise, and cheaper. The default reduction is the paper's mean
    of the sequences' token means; `reduction: tokens` is the variant.

    No code is public. Sheet 22: confirmed (by reviews quoting the paper) are the reward, K = 256, a slightly negative
    β, κ > 1 and the untempered log-prob; reconstructed are the layout, the values β = -0.1 and κ = 1.3, and the exact
    form. At κ = 1 the expected gradient is (1 - β) times that of `dft`. The loss may be negative. Tokens that the
    policy hardly ever draws get no positive signal: start from a competent model, or add `nll`. Metrics `[N]`:
    `hit_rate`, the share of draws that were right, `reward`, the mean of R (or their expectations), and `entropy`, H(π)
    in nats.
    """
    loss, hit = scores[_need(draws, beta, kappa, estimator).name].unbind(-1)
    hit = hit.detach()
    return loss, {"hit_rate": hit, "reward": hit + beta * (1 - hit), "entropy": scores["entropy_metric"]}
