"""Losses on preference pairs: an answer that was chosen beside one that was rejected.

Each gives one value a pair `[G]`. A pair is a group of two sequences whose scalar `chosen` is 1 and 0; a train stage
encodes pairs, and keeps their sides together, where a loss of its objective reads `chosen`. In the formulas, for a
side y with T target tokens, w the chosen and l the rejected one:

    l = Σ_t log π(y_t)    h = Σ_t log π(y_t) - log π_0(y_t)    a = l / T    D = h_w - h_l    σ the logistic function

Many of these lower the likelihood of both answers. Likelihood of the chosen one beside them is a term of its own:

    objective:
      - {name: dpo, length_normalised: true}
      - {name: nll, where: chosen, reduction: sequences, weight: 1.0}

Every loss logs, as means over pairs: `chosen_reward` and `rejected_reward` (what the loss takes for the reward of an
answer, in the temperature of the loss), `reward_margin` (their difference), `reward_accuracy` (the share of pairs whose
margin is positive), `chosen_logprob` and `rejected_logprob` (a: per token, so that lengths and losses compare).

Losses and defaults: sheet 52, which was checked against TRL's trainers; length normalisation of DPO: sheet 53.
"""

import math
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from posttrain.data import Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import REFERENCE_LOGPROBS, TokenScores
from posttrain.errors import UserError
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.reduction import Measure, Reduction

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
BelowHalf = Annotated[float, Field(ge=0, lt=0.5)]

PAIR_MEAN = Reduction("groups")


def check_pairs(sequences: List[Sequence], measures: List[Measure]) -> None:
    """Raises `UserError` for a group that counts and is not one chosen and one rejected sequence, each with targets."""
    groups: dict[str, list[int]] = {}
    for row, sequence in enumerate(sequences):
        groups.setdefault(sequence.group or f"\0{row}", []).append(row)
    for members in groups.values():
        if not any(measures[row].any() for row in members):
            continue
        first = sequences[members[0]].sample_id
        sides = ["chosen" if sequences[row].scalars.get("chosen", 0) > 0 else "rejected" for row in members]
        if sorted(sides) != ["chosen", "rejected"]:
            raise UserError(
                f"sample {first}: a preference loss compares one chosen and one rejected answer, but its group holds "
                f"{', '.join(sides)}: give every row both"
            )
        for row, side in zip(members, sides, strict=True):
            if not sequences[row].targets:
                raise UserError(
                    f"sample {sequences[row].sample_id}: its {side} answer has no trained token, so there is nothing "
                    "to compare: leave the row out, or raise max_length"
                )


@objective(
    "dpo", needs=(REFERENCE_LOGPROBS,), reduction=PAIR_MEAN, level="group", scalars=("chosen",), check=check_pairs
)
def dpo(
    scores: TokenScores,
    batch: Batch,
    *,
    beta: Positive = 0.1,
    label_smoothing: Share = 0.0,
    length_normalised: bool = False,
) -> TermLoss:
    """Direct preference optimisation; with `label_smoothing` conservative DPO.

    ℓ = -(1-ε) log σ(β D) - ε log σ(-β D)  `[G]`,  ε = `label_smoothing`, the share of pairs thought to be labelled the
    wrong way round. `length_normalised` takes the mean of h over tokens instead of the sum (TeleChat 2, sheet 53; TRL's
    `sigmoid_norm`): β then stands for |y| times as much.

    Rafailov et al. (arXiv 2305.18290, equation 7); ε: Mitchell 2023, "A note on DPO with noisy preferences".
    """
    pairs = Pairs.of(batch)
    rewards = beta * _log_ratios(scores, batch, length_normalised)
    return smoothed_logistic(pairs.difference(rewards), label_smoothing), pairs.metrics(scores, batch, rewards)


@objective(
    "robust_dpo",
    needs=(REFERENCE_LOGPROBS,),
    reduction=PAIR_MEAN,
    level="group",
    scalars=("chosen",),
    check=check_pairs,
)
def robust_dpo(
    scores: TokenScores, batch: Batch, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1
) -> TermLoss:
    """DPO whose mean over wrongly labelled pairs is the loss on right ones.

    ℓ = [-(1-ε) log σ(β D) + ε log σ(-β D)] / (1-2ε)  `[G]`,  ε = `label_smoothing`. It can be negative.

    Chowdhury et al. (arXiv 2403.00409).
    """
    pairs = Pairs.of(batch)
    rewards = beta * _log_ratios(scores, batch)
    margin = pairs.difference(rewards)
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
    return loss / (1 - 2 * label_smoothing), pairs.metrics(scores, batch, rewards)


@objective(
    "ipo", needs=(REFERENCE_LOGPROBS,), reduction=PAIR_MEAN, level="group", scalars=("chosen",), check=check_pairs
)
def ipo(scores: TokenScores, batch: Batch, *, tau: Positive = 0.1, length_normalised: bool = True) -> TermLoss:
    """Identity preference optimisation: a margin to hit, which does not run away where pairs are easily told apart.

    ℓ = (D' - 1/(2τ))²  `[G]`,  D' = D with the mean of h over tokens (`length_normalised: false`: with the sum).

    Azar et al. (arXiv 2310.12036, equation 17). The paper is written with sums; TRL divides by the length, which its
    authors say the paper's results did too, and is followed. Rewards in the log are τ h.
    """
    pairs = Pairs.of(batch)
    rewards = tau * _log_ratios(scores, batch, length_normalised)
    return (pairs.difference(rewards) / tau - 1 / (2 * tau)).square(), pairs.metrics(scores, batch, rewards)


@objective(
    "slic", needs=(REFERENCE_LOGPROBS,), reduction=PAIR_MEAN, level="group", scalars=("chosen",), check=check_pairs
)
def slic(scores: TokenScores, batch: Batch, *, beta: Positive = 0.1) -> TermLoss:
    """A hinge in place of DPO's logistic loss: pairs beyond the margin no longer teach.

    ℓ = max(0, 1 - β D)  `[G]`.

    TRL's `hinge`: RSO (Liu et al., arXiv 2309.06657), after SLiC (Zhao et al., arXiv 2305.10425), which
    has no reference and adds the likelihood of the chosen answer.
    """
    pairs = Pairs.of(batch)
    rewards = beta * _log_ratios(scores, batch)
    return torch.relu(1 - pairs.difference(rewards)), pairs.metrics(scores, batch, rewards)


@objective("simpo", reduction=PAIR_MEAN, level="group", scalars=("chosen",), check=check_pairs)
def simpo(scores: TokenScores, batch: Batch, *, beta: Positive = 2.0, gamma: NonNegative = 0.5) -> TermLoss:
    """Simple preference optimisation: the likelihood per token is the reward, and there is no reference.

    ℓ = -log σ(β (a_w - a_l) - γ)  `[G]`,  γ = `gamma`, the margin asked for (0.5 to 1.6).

    Meng et al. (arXiv 2405.14734). Rewards in the log are β a, so that their margin is compared with 0,
    not with γ.
    """
    pairs = Pairs.of(batch)
    rewards = beta * batch.mean_by_sequence(scores.logprobs)
    return -F.logsigmoid(pairs.difference(rewards) - gamma), pairs.metrics(scores, batch, rewards)


@objective("cpo", reduction=PAIR_MEAN, level="group", scalars=("chosen",), check=check_pairs)
def cpo(scores: TokenScores, batch: Batch, *, beta: Positive = 0.1, label_smoothing: Share = 0.0) -> TermLoss:
    """The preference half of contrastive preference optimisation: DPO with a uniform reference.

    ℓ = -(1-ε) log σ(β (l_w - l_l)) - ε log σ(-β (l_w - l_l))  `[G]`,  ε = `label_smoothing`.

    CPO adds the likelihood of the chosen answer, without which nothing holds the model: list `{name: nll, where:
    chosen}` beside it. Xu et al. (arXiv 2401.08417); the authors' code and TRL take the mean over
    tokens for that likelihood, the default of `nll`, where the paper has the sum.
    """
    pairs = Pairs.of(batch)
    rewards = beta * batch.sum_by_sequence(scores.logprobs)
    return smoothed_logistic(pairs.difference(rewards), label_smoothing), pairs.metrics(scores, batch, rewards)


@objective("orpo", reduction=PAIR_MEAN, level="group", scalars=("chosen",), check=check_pairs)
def orpo(scores: TokenScores, batch: Batch, *, beta: Positive = 0.1) -> TermLoss:
    """The preference half of odds ratio preference optimisation.

    ℓ = -λ log σ(log odds(e^{a_w}) - log odds(e^{a_l}))  `[G]`,  odds(p) = p / (1-p),  λ = `beta` (TRL's name for it).

    ORPO adds the likelihood of the chosen answer, which does most of the work: list `{name: nll, where: chosen}` beside
    it. Hong et al. (arXiv 2403.07691). The likelihood there is that of the answer; TRL takes the
    prompt's tokens too. Rewards in the log are the log odds.
    """
    pairs = Pairs.of(batch)
    # An answer that is certain has infinite odds: the float just below 1 stands for it, and has no gradient.
    means = batch.mean_by_sequence(scores.logprobs).clamp(max=-torch.finfo(torch.float32).eps)
    rewards = means - log1mexp(means)
    return -beta * F.logsigmoid(pairs.difference(rewards)), pairs.metrics(scores, batch, rewards)


def smoothed_logistic(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1-ε) log σ(m) - ε log σ(-m), of each margin m; ε = `label_smoothing`."""
    loss = -(1 - label_smoothing) * F.logsigmoid(margin)
    return loss - label_smoothing * F.logsigmoid(-margin) if label_smoothing else loss


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, without cancellation at either end (Mächler 2012)."""
    near_zero = x > -math.log(2)
    # `where` multiplies the gradient of the branch not taken by 0, which does not help where it is infinite.
    small, large = torch.where(near_zero, x, -1.0), torch.where(near_zero, -1.0, x)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def _log_ratios(scores: TokenScores, batch: Batch, length_normalised: bool = False) -> Tensor:
    """h `[S]`: log π(y) - log π_0(y), summed over each sequence's targets (or averaged)."""
    difference = scores.logprobs - scores["reference_logprobs"]
    return batch.mean_by_sequence(difference) if length_normalised else batch.sum_by_sequence(difference)


@dataclass(frozen=True)
class Pairs:
    """`chosen[G]`, `rejected[G]`: the sequences of each pair."""

    chosen: Tensor
    rejected: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Pairs":
        """What groups that are no pairs give is not defined; `check_pairs` sees to it that none of them counts."""
        is_chosen = batch.scalar("chosen") > 0
        zeros = torch.zeros(batch.groups, dtype=torch.long, device=batch.group.device)
        order = torch.arange(batch.sequences, device=batch.group.device)
        sides = [zeros.scatter_reduce(0, batch.group, order * side, "amax") for side in (is_chosen, ~is_chosen)]
        return cls(*sides)

    def difference(self, values: Tensor) -> Tensor:
        """`[S]` -> `[G]`: the chosen side's value minus the rejected side's."""
        return values[self.chosen] - values[self.rejected]

    def metrics(self, scores: TokenScores, batch: Batch, rewards: Tensor) -> dict[str, Tensor]:
        """What every loss logs, `[G]` each."""
        means = batch.mean_by_sequence(scores.logprobs.detach())
        return {
            **self.rewards(rewards),
            "chosen_logprob": means[self.chosen],
            "rejected_logprob": means[self.rejected],
        }

    def rewards(self, rewards: Tensor) -> dict[str, Tensor]:
        """What is logged of rewards `[S]`, `[G]` each."""
        rewards = rewards.detach()
        margin = self.difference(rewards)
        return {
            "chosen_reward": rewards[self.chosen],
            "rejected_reward": rewards[self.rejected],
            "reward_margin": margin,
            "reward_accuracy": (margin > 0).float(),
        }
