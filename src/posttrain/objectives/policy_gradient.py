"""Policy gradients: per-token weight × log-prob of what the policy drew itself. Sources give the column `advantage`.

The column `old_logprobs` `[N]` says how likely each token was when the rollouts were made. Without it they are this
very policy's, and every ratio is 1 (with the gradient of a ratio). All log-probs, the reference's too, are at the
temperature that the sequence was drawn at (its scalar `temperature`); the filters top-k, top-p and min-p play no part.

Formulas by sheet 52, which confirmed them against verl, TRL and OpenRLHF.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.data import Origin
from posttrain.data.batch import Batch
from posttrain.data.scores import ENTROPY, REFERENCE_LOGPROBS, VALUES, TokenScores
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.reduction import Reduction

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Estimator = Literal["k1", "k2", "k3"]


def log_ratio(scores: TokenScores, batch: Batch) -> Tensor:
    """`[N]` log(π / π_old), with graph; 0 where the rollouts are this very policy's."""
    return scores.logprobs - batch.columns.get("old_logprobs", scores.logprobs).detach()


def _clipped(
    ratio: Tensor, advantage: Tensor, low: float, high: float | None, dual: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """max(-r A, -clip(r, 1 - low, 1 + high) A), at most -dual · A where A < 0; and which values a border holds."""
    inside = ratio.clamp(1 - low, 1 + (low if high is None else high))
    loss = torch.maximum(-ratio * advantage, -inside * advantage)
    held = -inside * advantage > -ratio * advantage
    if dual is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)
    metrics = {
        "ratio": ratio.detach(),
        "clipped_high": (held & (advantage > 0)).float(),
        "clipped_low": (held & (advantage < 0)).float(),
    }
    return loss, metrics


def clipped_surrogate(
    scores: TokenScores, batch: Batch, low: float = 0.2, high: float | None = None, dual: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`[N]` PPO's surrogate of each token and its metrics; see `_ppo`. `kl_to_old`: k3, how far it went."""
    difference = log_ratio(scores, batch)
    ratio = difference.exp()
    loss, metrics = _clipped(ratio, batch.column("advantage"), low, high, dual)
    return loss, {**metrics, "kl_to_old": (ratio - difference - 1).detach()}


@objective("reinforce", columns=("advantage",))
def reinforce(scores: TokenScores, batch: Batch) -> TermLoss:
    """ℓ_t = -A_t log π_t  `[N]`: REINFORCE, RLOO, ReMax, by the advantage. On-policy: one update for each rollout."""
    return -batch.column("advantage") * scores.logprobs


def _ppo(
    scores: TokenScores,
    batch: Batch,
    *,
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2,
    clip_high: Positive | None = None,
    dual_clip: Annotated[float, Field(gt=1)] | None = None,
    importance_cap: Positive | None = None,
) -> TermLoss:
    """The clipped surrogate of PPO (arXiv 1707.06347), which GRPO (arXiv 2402.03300), Dr.GRPO and DAPO share.

    ℓ_t = -min(r_t A_t, clip(r_t, 1 - ε_low, 1 + ε_high) A_t)  `[N]`;  r_t = π / π_old.

    ε_low = `clip_low`, ε_high = `clip_high` (null: the same; DAPO 0.28). `dual_clip` c > 1: at most -c A_t for A_t < 0
    (verl 3). `importance_cap` C: times sg min(C, π_old / π_sampler), which corrects for a sampler that is not quite the
    policy (reads the column `sampled_logprob`; TRL 3 for vLLM); tokens that an answer was given to begin with weigh 1.
    Methods differ by `reduction`: `sequences` (GRPO, the default, and PPO as sheet 48 has it), `tokens` (DAPO),
    `{constant: longest answer}` (Dr.GRPO). Metrics `[N]`: `ratio`, `clipped_high`, `clipped_low`, `kl_to_old` (k3,
    nats); with the cap `importance` and `importance_gap`, the distance of the two log-probs (a ratio is 1 on average,
    however stale the sampler).
    """
    loss, metrics = clipped_surrogate(scores, batch, clip_low, clip_high, dual_clip)
    if importance_cap is not None:
        old = batch.columns.get("old_logprobs", scores.logprobs).detach()
        drawn = batch.origin == Origin.ROLLOUT
        gap = torch.where(drawn, old - batch.column("sampled_logprob"), 0.0)
        weight = gap.exp().clamp(max=importance_cap)
        told = {"importance": weight.where(drawn, torch.nan), "importance_gap": gap.abs().where(drawn, torch.nan)}
        loss, metrics = weight * loss, {**metrics, **told}
    return loss, metrics


for _name in ("ppo", "grpo"):
    objective(_name, columns=("advantage",), reduction=Reduction("sequences"))(_ppo)


@objective("gspo", columns=("advantage",), level="sequence", reduction=Reduction("sequences"))
def gspo(
    scores: TokenScores,
    batch: Batch,
    *,
    clip_low: Annotated[float, Field(gt=0, le=1)] = 3e-4,
    clip_high: Positive | None = 4e-4,
) -> TermLoss:
    """GSPO (arXiv 2507.18071): one ratio for the whole answer, the geometric mean of its tokens' ratios.

    ℓ = -min(s A, clip(s, 1 - ε_low, 1 + ε_high) A)  `[S]`;  s = exp(mean_t log r_t), with gradient through s.

    A is the mean of the answer's advantages, which are usually all the same. Sheet 52 has the clips from memory.
    Metrics `[S]`: `ratio`, `clipped_high`, `clipped_low`.
    """
    ratio = batch.mean_by_sequence(log_ratio(scores, batch)).exp()
    return _clipped(ratio, batch.mean_by_sequence(batch.column("advantage")), clip_low, clip_high, None)


@objective("cispo", columns=("advantage",))
def cispo(scores: TokenScores, batch: Batch, *, ratio_cap: Positive = 5.0) -> TermLoss:
    """CISPO (arXiv 2506.13585): ℓ_t = -sg(min(r_t, cap)) A_t log π_t  `[N]`. No token loses its gradient.

    `ratio_cap`: TRL's `epsilon_high` (its documentation suggests 5). Metrics `[N]`: `ratio`, `clipped_high`.
    """
    ratio = log_ratio(scores, batch).detach().exp()
    loss = -ratio.clamp(max=ratio_cap) * batch.column("advantage") * scores.logprobs
    return loss, {"ratio": ratio, "clipped_high": (ratio > ratio_cap).float()}


@objective("kl", needs=(REFERENCE_LOGPROBS,))
def kl(scores: TokenScores, batch: Batch, *, estimator: Estimator = "k3") -> TermLoss:
    """A hold to the reference on drawn tokens, a term to add: `[grpo, {name: kl, weight: 0.04, reduction: sequences}]`.

    With d = log π_0 - log π:  k1 = -d,  k2 = d²/2,  k3 = e^d - d - 1  `[N]`.

    As a loss k1's gradient is 0 on average, k2's is that of the reverse KL, and k3's (GRPO's) is that of neither.
    Metrics `[N]`: `k1`, `k2`, `k3`.
    """
    d = scores["reference_logprobs"] - scores.logprobs
    found = {"k1": -d, "k2": d.square() / 2, "k3": d.exp() - d - 1}
    return found[estimator], {name: values.detach() for name, values in found.items()}


@objective("entropy_bonus", needs=(ENTROPY,))
def entropy_bonus(scores: TokenScores, batch: Batch) -> TermLoss:
    """ℓ_t = -H(π_t)  `[N]`, over the whole vocabulary: a term to add, `{name: entropy_bonus, weight: 0.001}`.

    Metrics `[N]`: `entropy`, in nats.
    """
    return -scores["entropy"], {"entropy": scores["entropy"].detach()}


@objective("value", needs=(VALUES,), columns=("return", "old_values"), reduction=Reduction("sequences"))
def value(scores: TokenScores, batch: Batch, *, clip: Positive | None = 0.2) -> TermLoss:
    """What a critic learns, a term beside the policy's: `[ppo, {name: value, weight: 5}]`. Needs `critic`.

    ℓ_t = ½ max((V - R)², (V' - R)²)  `[N]`,  V' = V kept within `clip` of what it was when the answer was drawn (null:
    ½ (V - R)²), R the return, A + V of generalised advantage estimation before whitening.

    Sheets 48 and 31 (ReFT's and DeepSpeed-Chat's code, which agree). Metrics `[N]`: `value`, `value_error` (V - R)²,
    `value_clipped`.
    """
    values, returns, old = scores["values"], batch.column("return"), batch.column("old_values")
    error = (values - returns).square()
    loss, held = error, torch.zeros_like(error)
    if clip is not None:
        inside = (old + (values - old).clamp(-clip, clip) - returns).square()
        loss, held = torch.maximum(error, inside), (inside > error).float()
    return loss / 2, {"value": values.detach(), "value_error": error.detach(), "value_clipped": held}
