"""Policy gradients of groups in which a demonstration stands among the policy's own answers.

Tokens of origin `demonstration` (rollouts with `begin: demonstration`) have the advantage of their answer, and no
log-probs of who wrote them: LUFFY takes their probability there as 1.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from posttrain.data import Origin
from posttrain.data.batch import Batch
from posttrain.data.scores import ENTROPY_METRIC, TokenScores
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.policy_gradient import clipped_surrogate
from posttrain.objectives.reduction import Reduction

Gamma = Annotated[float, Field(ge=0)]
Clip = Annotated[float, Field(gt=0, le=1)]


def _with_demonstrations(
    scores: TokenScores, batch: Batch, gamma: float, low: float, high: float | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`[N]` -A f(p) where the token is demonstrated, else PPO's surrogate; which are demonstrated; metrics."""
    given = batch.origin == Origin.DEMONSTRATION
    own, metrics = clipped_surrogate(scores, batch, low, high)
    probability = scores.logprobs.exp()
    shaped = probability / (probability + gamma) if gamma else probability
    loss = torch.where(given, -batch.column("advantage") * shaped, own)
    nothing = torch.full_like(own.detach(), torch.nan)
    told = {name: torch.where(given, nothing, values) for name, values in metrics.items()}
    return loss, given, told | {"demonstration_p": torch.where(given, probability.detach(), nothing)}


@objective("luffy", columns=("advantage",), reduction=Reduction("sequences"))
def luffy(
    scores: TokenScores,
    batch: Batch,
    *,
    gamma: Gamma = 0.1,
    clip_low: Clip = 0.2,
    clip_high: Annotated[float, Field(gt=0)] | None = None,
) -> TermLoss:
    """LUFFY (arXiv 2504.14945): GRPO whose demonstrated tokens have f(p) in the place of the ratio, without a clip.

    ℓ_t = -A f(p_t)  `[N]` on tokens of origin `demonstration`, f(p) = p / (p + γ), γ = `gamma`; on others the clipped
    surrogate of `grpo`. The gradient's weight on log p_t is A γ p / (p + γ)², highest at p = γ, where plain importance
    weights (`gamma` 0: f(p) = p) nearly vanish. Without demonstrations it is GRPO.

    Sheets 52 and 37 (whose code has the same form). Metrics `[N]`: those of `grpo` of own tokens, `demonstration_p`.
    """
    loss, _, metrics = _with_demonstrations(scores, batch, gamma, clip_low, clip_high)
    return loss, metrics


@objective("srft", needs=(ENTROPY_METRIC,), columns=("advantage",), reduction=Reduction("sequences"))
def srft(
    scores: TokenScores,
    batch: Batch,
    *,
    gamma: Gamma = 0.0,
    positive: Annotated[float, Field(gt=0)] = 0.1,
    clip_low: Clip = 0.2,
    clip_high: Annotated[float, Field(gt=0)] | None = None,
) -> TermLoss:
    """The reinforcement of SRFT (arXiv 2506.19767): on demonstrations as in `luffy`, on own answers weighed by entropy.

    Own tokens with A > 0: the clipped surrogate times `positive` · sg(e^H), others as they are; demonstrated ones:
    -A f(p_t)  `[N]`. H: the mean entropy of the answer's tokens, in nats. Its other part is imitation:

        objective: [srft, {name: entropy_nll, origins: [demonstration], weight: 0.5, reduction: sequences}]

    Reconstructed: sheet 52 has the two weights from memory. That H is each answer's own mean, and that demonstrations
    have plain importance weights p (`gamma` 0), are choices made here. Metrics: those of `luffy`.
    """
    loss, given, metrics = _with_demonstrations(scores, batch, gamma, clip_low, clip_high)
    lifted = positive * batch.mean_by_sequence(scores[ENTROPY_METRIC.name]).exp()[batch.sequence]
    return torch.where(~given & (batch.column("advantage") > 0), lifted * loss, loss), metrics


@objective("entropy_nll", needs=(ENTROPY_METRIC,))
def entropy_nll(scores: TokenScores, batch: Batch) -> TermLoss:
    """Demonstrations count the less, the less sure the policy is of them: ℓ_t = -sg(e^{-H}) log π_t  `[N]`.

    H: the mean entropy of the sequence's target tokens, in nats. SRFT (arXiv 2506.19767), with `weight: 0.5`; sheet 52
    has that from memory, and the mean over the sequence is a choice made here. Metrics `[S]`: `entropy`,
    `entropy_weight`.
    """
    entropy = batch.mean_by_sequence(scores[ENTROPY_METRIC.name])
    weight = (-entropy).exp()
    return -weight[batch.sequence] * scores.logprobs, {"entropy": entropy, "entropy_weight": weight}
