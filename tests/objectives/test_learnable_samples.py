"""What reinforcement learning moves on samples of different difficulty (RIF-RFT, sheet 19), by our own losses."""

import numpy as np
import pytest
import torch
from gradients import batch_of, gradient, losses
from torch import Tensor

from posttrain.advantages import Outcomes, build_advantage


def logits_of(p: float) -> Tensor:
    """Three answers of one token, the first of which is right with probability p."""
    return torch.tensor([p, 0.75 * (1 - p), 0.25 * (1 - p)], dtype=torch.float64).log()[None]


def gradient_of(objective: str, token: int, logits: Tensor, advantage: float = 1.0) -> Tensor:
    """Ascent direction `[V]` of a sample whose answer is `token`."""
    columns = {"advantage": [[advantage]]} if objective != "nll" else {}
    batch = batch_of([[token]], columns=columns)
    return -gradient(lambda leaf: losses(objective, batch, leaf), logits)[0]


def expected(logits: Tensor) -> tuple[Tensor, float]:
    """Mean of the policy gradient over drawn answers, reward 1 for the right one, and of its squared norm."""
    chances = logits.softmax(-1)[0]
    drawn = [gradient_of("reinforce", token, logits, float(token == 0)) for token in range(3)]
    mean = sum((chance * each for chance, each in zip(chances, drawn, strict=True)), torch.zeros(3))
    return mean, float(sum(chance * each.square().sum() for chance, each in zip(chances, drawn, strict=True)))


@pytest.mark.parametrize(
    ("p", "supervised", "reinforced"), [(0.01, 0.99, 0.0099), (0.5, 0.5, 0.25), (0.999, 0.001, 0.000999)]
)
def test_the_expected_policy_gradient_is_p_times_the_supervised_one(
    p: float, supervised: float, reinforced: float
) -> None:
    logits = logits_of(p)
    sft, (rl, square) = gradient_of("nll", 0, logits), expected(logits)
    assert float(sft[0]) == pytest.approx(supervised, rel=1e-4)
    assert float(rl[0]) == pytest.approx(reinforced, rel=1e-4)
    assert rl.tolist() == pytest.approx((p * sft).tolist(), rel=1e-4, abs=1e-9)
    assert square <= 2 * p * (1 - p) + 1e-6


def advantages(spec: str | dict[str, object], rewards: list[float], **more: object) -> np.ndarray:
    size = len(rewards)
    outcomes = Outcomes(np.array(rewards), np.zeros(size, int), np.ones(size, int), **more)  # type: ignore[arg-type]
    return np.concatenate(build_advantage(spec)(outcomes)["advantage"])


@pytest.mark.parametrize(
    ("right", "variance", "plain", "normalised"),
    [
        (1, 0.109375, 0.21875, 0.618717),
        (2, 0.1875, 0.375, 0.810091),
        (4, 0.25, 0.5, 0.935412),
        (0, 0, 0, 0),
        (8, 0, 0, 0),
    ],
)
def test_dividing_by_the_spread_flattens_what_the_variance_scales(
    right: int, variance: float, plain: float, normalised: float
) -> None:
    """Check 2 of the sheet: Dr. GRPO keeps the scaling with the variance of rewards, GRPO flattens it."""
    rewards = [1.0] * right + [0.0] * (8 - right)
    assert np.var(rewards) == pytest.approx(variance)
    assert np.abs(advantages({"name": "group", "std": "none"}, rewards)).mean() == pytest.approx(plain)
    assert np.abs(advantages("group", rewards)).mean() == pytest.approx(normalised, abs=1e-6)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_move_nothing_where_answers_are_compared(reward: float) -> None:
    """Check 5 of the sheet."""
    equal = [reward] * 4
    for spec in ("group", {"name": "group", "std": "none"}, "leave_one_out"):
        assert not advantages(spec, equal).any()
    assert advantages("reward", equal).tolist() == equal


def test_equal_rewards_move_something_against_another_greedy_one() -> None:
    assert advantages("greedy", [1.0] * 4, baselines=np.zeros(4)).tolist() == [1.0] * 4
    assert not advantages("greedy", [1.0] * 4, baselines=np.ones(4)).any()
