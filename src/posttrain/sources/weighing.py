"""From scored answers to weighed tokens: what the policy and its critic thought of them, and their advantages."""

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from posttrain.advantages import Columns, Outcomes
from posttrain.data import Origin, Sequence
from posttrain.data.scores import REFERENCE_LOGPROBS, VALUES
from posttrain.data.step import Step
from posttrain.sources.rollout import Rollout, RolloutSettings, as_sequence, with_columns, written


class KLWeight:
    """β of the KL in the reward, moved so that the KL stays near a target (Ziegler et al., arXiv 1909.08593).

    After each round of m answers β is multiplied by 1 + clip(KL / target - 1, -0.2, 0.2) · m / horizon; KL is the mean
    over drawn tokens, in nats. Without a target it stays as it is.
    """

    def __init__(self, value: float, target: float | None = None, horizon: int = 10_000) -> None:
        self.value, self.target, self.horizon = value, target, horizon

    def update(self, kl: float, answers: int) -> None:
        """Move the weight by what a round has shown."""
        if self.target is not None:
            self.value *= 1 + float(np.clip(kl / self.target - 1, -0.2, 0.2)) * answers / self.horizon


class RunningMoments:
    """Mean and spread of all rewards so far, over ranks (Chan et al. 1979: rounds are added one by one)."""

    def __init__(self) -> None:
        self.state: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def update(self, rewards: npt.NDArray[np.float64]) -> None:
        """Add the rewards of a round, all ranks' behind one another."""
        if not len(rewards):
            return
        count, mean, squares = self.state
        total = count + len(rewards)
        share, apart = len(rewards) / total, float(rewards.mean()) - mean
        within = float(((rewards - rewards.mean()) ** 2).sum())
        self.state = (total, mean + apart * share, squares + within + apart**2 * count * share)

    @property
    def mean(self) -> float:
        """Of all rewards so far; 0 before the first."""
        return self.state[1]

    @property
    def spread(self) -> float:
        """Their (unbiased) standard deviation, in the rewards' unit; never 0."""
        count, _, squares = self.state
        return float(np.sqrt(squares / (count - 1) + 1e-8)) if count > 1 else 1.0


def add(step: Step, name: str, total: float, count: float) -> None:
    """Add to a metric of the step: a sum and a count."""
    before = step.report.get(name, (0.0, 0.0))
    step.report[name] = (before[0] + total, before[1] + count)


def weighed(
    rollouts: List[Rollout],
    step: Step,
    settings: RolloutSettings,
    advantage: Callable[[Outcomes], Columns],
    kl_weight: KLWeight,
    moments: RunningMoments,
) -> list[Sequence]:
    """The answers as sequences, with all columns that the losses read of them. Every rank must call it."""
    sequences = [as_sequence(rollout, settings) for rollout in rollouts]
    if settings.off_policy or settings.kl_in_reward or settings.values:
        with step.lap("time/score"):
            sequences = _scored(sequences, step, settings)
    rewards, token_rewards = _earned(rollouts, step, settings, moments)
    if settings.kl_in_reward:
        token_rewards = [
            earned - kl_weight.value * _own(sequence, "k1")
            for earned, sequence in zip(token_rewards, sequences, strict=True)
        ]
        _hold(sequences, step, kl_weight)
    names = {sequence.group: index for index, sequence in enumerate(sequences)}
    columns = advantage(
        Outcomes(
            rewards=rewards,
            group=np.array([names[sequence.group] for sequence in sequences], dtype=np.int64),
            lengths=np.array([rollout.attempt.weighed for rollout in rollouts], dtype=np.int64),
            baselines=np.array([rollout.baseline for rollout in rollouts]) if settings.greedy else None,
            token_rewards=token_rewards,
            values=[_own(sequence, "old_values") for sequence in sequences] if settings.values else None,
            begun=np.array([rollout.attempt.begun for rollout in rollouts], dtype=np.int64),
            learned=[(sequence.target & (sequence.origin != Origin.HINT))[written(sequence)] for sequence in sequences],
            gather=step.gather,
        )
    )
    return [
        with_columns(sequence, **{name: values[row] for name, values in columns.items()})
        for row, sequence in enumerate(sequences)
    ]


def _earned(
    rollouts: List[Rollout], step: Step, settings: RolloutSettings, moments: RunningMoments
) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.float64]]]:
    """Each answer's reward, and what moves it from the last token to those that earned it: a row adds up to 0."""
    rewards = np.array([rollout.score.value for rollout in rollouts], dtype=np.float64)
    moved = [np.zeros(rollout.attempt.weighed) for rollout in rollouts]
    scale, bound = 1.0, np.inf if settings.clip is None else settings.clip
    if settings.normalise:
        moments.update(np.concatenate(step.gather(rewards)))
        scale = moments.spread
        rewards = (rewards - moments.mean) / scale
    for row, rollout in zip(moved, rollouts, strict=True):
        if rollout.score.tokens:
            row[rollout.attempt.begun :] += (np.array(rollout.score.tokens) / scale).clip(-bound, bound)
            row[-1] -= row.sum()
    return rewards.clip(-bound, bound), moved


def mean_advantage(sequence: Sequence) -> float:
    """Of the tokens that are weighed."""
    return float(_own(sequence, "advantage").mean())


def _own(sequence: Sequence, name: str) -> npt.NDArray[np.float64]:
    return sequence.columns[name][written(sequence)].astype(np.float64)


def _drawn(sequence: Sequence) -> npt.NDArray[np.bool_]:
    """`[R]`: those of the weighed tokens that the policy drew itself; of others it can have no distance to anything."""
    return np.equal(sequence.origin[written(sequence)], Origin.ROLLOUT)


def _scored(sequences: List[Sequence], step: Step, settings: RolloutSettings) -> list[Sequence]:
    """`old_logprobs` as the trainer itself has them; `k1` to the reference and a critic's values where asked for."""
    asked = ((settings.kl_in_reward, REFERENCE_LOGPROBS), (settings.values, VALUES))
    needs = tuple(need for wanted, need in asked if wanted)
    whole = [replace(sequence, target=written(sequence)) for sequence in sequences]
    found = []
    for sequence, scores in zip(sequences, step.score(whole, needs), strict=True):
        old = scores.logprobs.cpu().numpy()
        drawn = _drawn(sequence)
        columns = {"old_logprobs": old}
        if settings.kl_in_reward:
            columns["k1"] = np.where(drawn, old - scores[REFERENCE_LOGPROBS.name].cpu().numpy(), 0.0)
        if settings.values:
            columns["old_values"] = scores[VALUES.name].cpu().numpy()
        gap = np.abs(old - _own(sequence, "sampled_logprob"))[drawn]
        add(step, "sampler_gap", float(gap.sum()), len(gap))
        found.append(with_columns(sequence, **columns))
    return found


def _hold(sequences: List[Sequence], step: Step, kl_weight: KLWeight) -> None:
    tokens = np.concatenate([np.zeros(0), *(_own(sequence, "k1")[_drawn(sequence)] for sequence in sequences)])
    shares = step.gather((float(tokens.sum()), len(tokens), len(sequences)))
    total, count, answers = (sum(share[place] for share in shares) for place in range(3))
    add(step, "reference_kl", float(tokens.sum()), len(tokens))
    add(step, "kl_weight", kl_weight.value, 1)
    if count:
        kl_weight.update(total / count, answers)
