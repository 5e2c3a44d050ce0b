"""Where an answer's reward comes, and rewards on a scale of their own: from scores to advantages."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import on_ranks

from posttrain.advantages import build_advantage
from posttrain.data import Origin, Sample, Sequence, user
from posttrain.data.scores import TokenScores
from posttrain.data.step import Step
from posttrain.generation import Sampling
from posttrain.rewards import Attempt, Score
from posttrain.sources.rollout import Rollout, RolloutSettings
from posttrain.sources.weighing import KLWeight, RunningMoments, weighed

INCREMENTS = (1.0, 0.6, 0.3)


def rollout(value: float, tokens: tuple[float, ...] = ()) -> Rollout:
    drawn, logprobs = np.arange(3, dtype=np.int32), np.zeros(3, np.float32)
    attempt = Attempt(Sample((user("?"),)), "", drawn, logprobs, "stop", prompt=np.array([7], np.int32))
    return Rollout(attempt, Score(value, tokens=tokens), 0)


def score(sequences: Any, needs: Any) -> list[TokenScores]:
    return [
        TokenScores(torch.zeros(s.targets), {need.name: torch.zeros(s.targets) for need in needs}) for s in sequences
    ]


def weigh(
    *rollouts: Rollout,
    advantage: Any = None,
    moments: RunningMoments | None = None,
    gather: Any = None,
    **settings: Any,
) -> list[Sequence]:
    step = Step(0, 1, seed=0, score=score, **({"gather": gather} if gather else {}))
    found = RolloutSettings(1, 1, Sampling(max_new_tokens=3), values=True, **settings)
    estimator = build_advantage(advantage or {"name": "gae", "whiten": False, "lam": 0.95})
    return weighed(list(rollouts), step, found, estimator, KLWeight(0.0), moments or RunningMoments())


def advantages(*rollouts: Rollout, **more: Any) -> list[list[float]]:
    return [sequence.columns["advantage"][1:].tolist() for sequence in weigh(*rollouts, **more)]


def test_increments_come_at_their_tokens_and_a_plain_reward_at_the_last() -> None:
    plain, spread = advantages(rollout(1.9), rollout(1.9, INCREMENTS))
    assert plain == pytest.approx([0.9025 * 1.9, 0.95 * 1.9, 1.9])
    assert spread == pytest.approx([1 + 0.95 * 0.885, 0.6 + 0.95 * 0.3, 0.3])


def test_without_a_discount_the_first_token_is_worth_the_same() -> None:
    plain, spread = advantages(
        rollout(1.9), rollout(1.9, INCREMENTS), advantage={"name": "gae", "whiten": False, "lam": 1.0}
    )
    assert plain == pytest.approx([1.9] * 3)
    assert spread == pytest.approx([1.9, 0.9, 0.3])


def test_what_token_rewards_leave_of_the_value_comes_at_the_last() -> None:
    (found,) = advantages(rollout(2.9, INCREMENTS), advantage={"name": "gae", "whiten": False, "lam": 0.0})
    assert found == pytest.approx([1.0, 0.6, 1.3])


def test_estimators_of_whole_answers_see_the_value() -> None:
    found = advantages(rollout(1.9), rollout(1.9, INCREMENTS), advantage="reward")
    assert found == [pytest.approx([1.9] * 3)] * 2


@given(st.lists(st.lists(st.floats(-50, 50), max_size=5), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_rounds(rounds: list[list[float]]) -> None:
    moments = RunningMoments()
    for values in rounds:
        moments.update(np.array(values))
    everything = np.array([value for values in rounds for value in values])
    if len(everything) > 1:
        assert moments.mean == pytest.approx(everything.mean(), abs=1e-9)
        assert moments.spread == pytest.approx(np.sqrt(everything.var(ddof=1) + 1e-8), abs=1e-6)


def test_normalised_rewards_have_the_spread_of_all_so_far() -> None:
    moments = RunningMoments()
    first = weigh(rollout(1.0), rollout(3.0), advantage="reward", normalise=True, moments=moments)
    assert [s.columns["advantage"][-1] for s in first] == pytest.approx([-0.707107, 0.707107], abs=1e-6)
    second = weigh(rollout(9.0, (4.0, 4.0, 1.0)), normalise=True, clip=1.0, moments=moments)
    spread = np.std([1, 3, 9], ddof=1)
    assert (9 - 13 / 3) / spread > 1
    returned = second[0].columns["return"][1:]
    last = 1 - 8 / spread
    assert returned[-1] == pytest.approx(last, abs=1e-5)
    assert returned[0] == pytest.approx(4 / spread + 0.95 * (4 / spread + 0.95 * last), abs=1e-5)


def test_what_single_tokens_have_earned_is_clipped_too() -> None:
    estimator = {"name": "gae", "whiten": False, "lam": 1.0}
    (found,) = advantages(rollout(2.0, (7.0, -6.0, 0.5)), advantage=estimator, clip=1.0)
    assert found == pytest.approx([1.0, 0.0, 1.0])  # 1, -1, and what is left of 1
    (found,) = advantages(rollout(0.5, (0.25, 0.5, -0.25)), advantage=estimator, clip=1.0)
    assert found == pytest.approx([0.5, 0.25, -0.25])


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_neither_hints_nor_masked_answers_move_the_whitened_advantages_of_others(finish_reason: Any) -> None:
    hinted = rollout(5.0)
    attempt = replace(hinted.attempt, begun=1, drawn=np.array([False, True, True]), finish_reason=finish_reason)
    found = weigh(
        rollout(1.0), rollout(0.0), replace(hinted, attempt=attempt), advantage="reinforce++", truncated="mask"
    )
    learned = np.concatenate([s.columns["advantage"][s.target & (s.origin != Origin.HINT)] for s in found])
    assert len(learned) == (8 if finish_reason == "stop" else 6)
    assert learned.mean() == pytest.approx(0, abs=1e-6)
    assert learned.std(ddof=1) == pytest.approx(1, abs=1e-6)


def test_equal_rewards_are_normalised_to_nothing() -> None:
    for sequence in weigh(rollout(2.0), rollout(2.0), advantage="reward", normalise=True):
        assert sequence.columns["advantage"][1:].tolist() == [0, 0, 0]


def test_all_ranks_normalise_alike() -> None:
    def of(values: list[float], gather: Any) -> list[float]:
        found = weigh(*map(rollout, values), advantage="reward", normalise=True, gather=gather)
        return [float(sequence.columns["advantage"][-1]) for sequence in found]

    alone = weigh(*map(rollout, [1.0, 3.0, 9.0]), advantage="reward", normalise=True)
    shares = on_ranks([[1.0, 3.0], [], [9.0]], of)
    assert [value for share in shares for value in share] == pytest.approx(
        [float(sequence.columns["advantage"][-1]) for sequence in alone]
    )
