"""Clip-Cov and KL-Cov: the few tokens whose reward most lowers the entropy are held back.

How much a token does so is its covariance over the step, c_t = (A_t - mean A) (log π_old,t - mean log π_old), with what
the policy thought when the step's answers were drawn (before the first update that is what it thinks now; the authors'
code takes the log-probs of each mini-batch).

Cui et al., "The entropy mechanism of RL for reasoning language models" (arXiv 2505.22617), by sheet 52.
"""

from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from posttrain.data import Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import TokenScores, uniforms
from posttrain.data.step import Step
from posttrain.data.uncertainty import rank_among
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.policy_gradient import clipped_surrogate, log_ratio

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
COVARIANCE, RANK, EQUALS = "covariance", "covariance_rank", "covariance_equals"


def with_covariance(sequences: List[Sequence], step: Step) -> List[Sequence]:
    """Columns `covariance`, `covariance_rank` (0: the largest of the step's N targets, then 1/N, 2/N ...; equal ones
    have the same) and `covariance_equals` (how many have the same).

    All N covariances, sorted, are left in `step.shared["covariances"]`.
    """
    old = _old_logprobs(sequences, step)
    rewards = [sequence.columns["advantage"][sequence.target].astype(np.float64) for sequence in sequences]
    everywhere = step.gather((np.concatenate([*rewards, []]), np.concatenate([*old, []])))
    all_rewards, all_old = (np.concatenate([share[side] for share in everywhere]) for side in (0, 1))
    means = (all_rewards.mean(), all_old.mean()) if len(all_rewards) else (0.0, 0.0)
    ordered = np.sort((all_rewards - means[0]) * (all_old - means[1]))
    step.shared["covariances"] = ordered
    found = []
    for sequence, weights, logprobs in zip(sequences, rewards, old, strict=True):
        covariance = (weights - means[0]) * (logprobs - means[1])
        columns = {name: np.zeros(len(sequence), np.float32) for name in (COVARIANCE, RANK, EQUALS)}
        columns[COVARIANCE][sequence.target] = covariance
        columns[RANK][sequence.target] = rank_among(ordered, covariance)
        below, within = (np.searchsorted(ordered, covariance, side=side) for side in ("left", "right"))
        columns[EQUALS][sequence.target] = within - below
        found.append(replace(sequence, columns={**sequence.columns, **columns}))
    return found


def _old_logprobs(sequences: List[Sequence], step: Step) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """As the source has them; where it does not, the policy has not moved since, and is asked."""
    if all(step.gather(all("old_logprobs" in sequence.columns for sequence in sequences))):
        return [sequence.columns["old_logprobs"][sequence.target].astype(np.float64) for sequence in sequences]
    return [scores.logprobs.double().cpu().numpy() for scores in step.score(sequences, ())]


@objective("clip_cov", columns=("advantage",), prepare=with_covariance)
def clip_cov(
    scores: TokenScores,
    batch: Batch,
    *,
    share: Share = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2,
    clip_high: Positive | None = None,
) -> TermLoss:
    """PPO's clipped surrogate in which a random `share` of the tokens with `low` < c_t < `high` counts 0  `[N]`.

    The share is of all tokens. Each one within the bounds is drawn with the chance that gives so many on average: the
    code draws exactly so many, which would depend on how a step is cut. Metrics `[N]`: the surrogate's, `covariance`,
    `held_back`.
    """
    loss, metrics = clipped_surrogate(scores, batch, clip_low, clip_high)
    covariance = batch.column(COVARIANCE)
    everywhere = batch.step.shared["covariances"]
    within = int(((everywhere > low) & (everywhere < high)).sum())
    drawn = uniforms(batch.key, batch.step.seed, 1).squeeze(-1) < share * len(everywhere) / max(1, within)
    held = drawn & (covariance > low) & (covariance < high)
    return torch.where(held, 0.0, loss), {**metrics, "covariance": covariance, "held_back": held.float()}


@objective("kl_cov", columns=("advantage",), prepare=with_covariance)
def kl_cov(scores: TokenScores, batch: Batch, *, share: Share = 2e-4, weight_of_kl: Positive = 1.0) -> TermLoss:
    """ℓ_t = -r_t A_t, and + `weight_of_kl` |log π - log π_old| for the `share` of tokens with the largest c_t  `[N]`.

    Among tokens with equal c_t, which are all of them where the advantages are equal, chance says which ones are the
    largest: as many on average as the share has room for. Metrics `[N]`: `ratio`, `covariance`, `held_back`.
    """
    difference = log_ratio(scores, batch)
    loss = -difference.exp() * batch.column("advantage")
    size = len(batch.step.shared["covariances"])
    among_equals = torch.floor(uniforms(batch.key, batch.step.seed, 1).squeeze(-1) * batch.column(EQUALS))
    held = torch.round(batch.column(RANK) * size) + among_equals < share * size
    metrics = {"ratio": difference.exp().detach(), "covariance": batch.column(COVARIANCE), "held_back": held.float()}
    return torch.where(held, loss + weight_of_kl * difference.abs(), loss), metrics
