"""A rollout: an answer that the policy drew, with its score; and how it becomes what the policy learns from."""

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from posttrain.data import Origin, Sample, Sequence
from posttrain.generation import Sampling
from posttrain.rewards import Attempt, Score

Choice = Literal["all", "right", "best", "pairs"]


@dataclass(frozen=True)
class Question:
    """A sample, the tokens that ask for its answer, and those of its demonstrated answer, where that is learned from.

    `steps`: how many of these its first step has, its first two ..., for beginnings that count in steps.
    """

    sample: Sample
    tokens: npt.NDArray[np.int32]
    demonstration: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """One scored answer.

    `draw`: its number among the answers to its question, which was asked at `place` of the run. `baseline`: the reward
    of the greedy answer, where one was drawn. `side`: 1 the chosen, 0 the rejected one of a pair. `advantage`: the mean
    of its tokens'. `size`: tokens of the demonstration that it may have begun with. `branch`: it is compared with the
    answers to its question that have the same.
    """

    attempt: Attempt
    score: Score
    draw: int
    place: int = 0
    baseline: float = 0.0
    side: float | None = None
    advantage: float = 0.0
    size: int = 0
    branch: int = 0


Group = list[Rollout]
"""The answers to one question."""


@dataclass(frozen=True)
class RolloutSettings:
    """How many questions and answers, how often each answer is learned from, and what is left out.

    - `prompts` questions a round (over all ranks), `n` answers each, drawn as `sampling` says; `learned`: the first so
      many are learned from (None: all), all are scored. `choose`: which of these: `all`, `right` by the verifier, the
      `best` of each question, or `pairs` of its best and its worst where these differ.
    - A round gives `epochs` passes of `mini_batches` optimiser steps each. With more than one step in all, what the
      policy thought of its answers at first (`old_logprobs`) is scored before the first.
    - `lag`: rounds between drawing and learning.
    - `refills`: how often questions whose answers are all worth the same are replaced by others (DAPO's dynamic
      sampling); 0 keeps them, with advantage 0. `replay`: so many groups of earlier rounds, of all ranks, are kept,
      and take the place of those that are worth the same after that.
    - `demonstrate`: a question with at most this share of right answers is learned from its demonstration: in the
      place of its answers, or with `collect`, beside them, once so many are collected, in a step of their own.
    - `truncated`: answers that ran out of tokens are learned from (`keep`) or not (`mask`: their rewards still count).
    - `kl_in_reward` β: each token's reward is -β (log π_old - log π_0); with `kl_target` β is moved as
      `weighing.KLWeight` says. `values`: a critic's are asked for. `greedy`: a greedy answer to each question, too.
    - `normalise`: rewards less the mean of all so far, over their spread, before the KL; `clip`: then they, and
      what single tokens have earned of them, are kept within ± this.
    - `time_limit`: seconds that a reward may take for one answer.
    - `compared`: the loss reads advantages, so that a round without any teaches nothing.
    - `max_errors`: the share of answers without a reward at which the run stops; `patience`: the number of rounds in a
      row without anything to learn from.
    """

    prompts: int
    n: int
    sampling: Sampling
    learned: int | None = None
    choose: Choice = "all"
    mini_batches: int = 1
    epochs: int = 1
    lag: int = 0
    refills: int = 0
    replay: int = 0
    demonstrate: float | None = None
    collect: int | None = None
    truncated: Literal["keep", "mask"] = "keep"
    kl_in_reward: float = 0.0
    kl_target: float | None = None
    kl_horizon: int = 10_000
    normalise: bool = False
    clip: float | None = None
    values: bool = False
    greedy: bool = False
    time_limit: float | None = None
    compared: bool = True
    max_errors: float = 0.1
    patience: int = 50

    @property
    def updates(self) -> int:
        """Optimiser steps of a round."""
        return self.mini_batches * self.epochs

    @property
    def off_policy(self) -> bool:
        """Has the policy moved on by the time that it learns from an answer?"""
        return self.updates > 1 or self.lag > 0 or self.replay > 0


def is_dead(group: Group) -> bool:
    """Is each answer worth the same as those it is compared with? Then nothing can be learned from comparing them."""
    return len({(rollout.branch, rollout.score.value) for rollout in group}) == len({r.branch for r in group})


def chosen(group: Group, choose: Choice) -> Group:
    """Those answers to a question that are learned from; see `RolloutSettings`. Of equal ones the first counts."""
    if choose == "all" or not group:
        return group
    if choose == "right":
        return [rollout for rollout in group if rollout.attempt.verdict.right]
    best = max(group, key=lambda rollout: rollout.score.value)
    if choose == "best":
        return [best]
    worst = min(group, key=lambda rollout: rollout.score.value)
    return [] if is_dead(group) else [replace(best, side=1.0), replace(worst, side=0.0)]


def as_sequence(rollout: Rollout, settings: RolloutSettings) -> Sequence:
    """The answer as tokens: its targets are what the policy drew, its group the question at its place in the run."""
    attempt = rollout.attempt
    whole = attempt.sequence
    masked = settings.truncated == "mask" and attempt.finish_reason == "length"
    scalars = {"reward": rollout.score.value}
    if attempt.temperature != 1:
        scalars["temperature"] = attempt.temperature
    if rollout.side is not None:
        scalars["chosen"] = rollout.side
    logprobs = np.concatenate([np.zeros(len(attempt.prompt)), attempt.logprobs]).astype(np.float32)
    return replace(
        whole,
        target=whole.target & (not masked),
        group=group_name(attempt.sample, rollout.place, rollout.branch),
        columns={"sampled_logprob": logprobs},
        scalars=scalars,
    )


def group_name(sample: Sample, place: int, branch: int = 0) -> str:
    """What the answers are called that are compared with one another."""
    return "/".join(map(str, (sample.prompt_id, place, *([branch] if branch else []))))


def written(sequence: Sequence) -> npt.NDArray[np.bool_]:
    """`[T]`: the tokens of the answer that are weighed, whether they are targets or not: what the policy drew, and what
    it was given to begin with."""
    return ~np.isin(sequence.origin, (Origin.PROMPT, Origin.ENVIRONMENT))


def with_columns(sequence: Sequence, **columns: npt.NDArray[Any]) -> Sequence:
    """With columns that hold a value for each token that is weighed (see `written`)."""
    own = written(sequence)
    added = {}
    for name, values in columns.items():
        added[name] = np.zeros(len(sequence), np.float32)
        added[name][own] = values
    return replace(sequence, columns={**sequence.columns, **added})


def by_group(sequences: List[Sequence]) -> list[list[Sequence]]:
    """Sequences of one group together, in the order of their first."""
    groups: dict[str, list[Sequence]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.group, []).append(sequence)
    return list(groups.values())


def packed(sequence: Sequence) -> dict[str, Any]:
    """Plain values and tensors, as checkpoints keep them."""
    return {field.name: _tensors(getattr(sequence, field.name)) for field in fields(Sequence)}


def unpacked(row: Mapping[str, Any]) -> Sequence:
    """The sequence that `packed` was given."""
    return Sequence(**{name: _arrays(value) for name, value in row.items()})


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return {key: _tensors(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    return {key: _arrays(item) for key, item in value.items()} if isinstance(value, Mapping) else value
