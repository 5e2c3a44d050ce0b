"""What holds between methods: sheet 52 (checks 3, 6 and 9); the mixed and masked surrogates of sheets 37 and 43.

Its other checks stand with the losses and advantages that they are about, and in tests/test_unified_view.py.
"""

from collections.abc import Sequence as List
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gradients import LogitsPolicy, batch_of, gradient, losses, mean_loss, step_of
from torch import Tensor

from posttrain.advantages import Outcomes, build_advantage
from posttrain.data import Origin, Sequence
from posttrain.data.batch import collate
from posttrain.objectives import build_objective
from posttrain.objectives.reduction import Reduction

TOKENS = [[0, 1], [2, 0], [1, 1]]
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()


def two_tokens(p: List[float]) -> Tensor:
    """Token 0 of a vocabulary of two has these probabilities."""
    given = torch.tensor(p, dtype=torch.float64)
    return torch.stack([given.log(), (-given).log1p()], -1)


def surrogate(p: List[float], old: List[float], advantage: List[float]) -> tuple[Any, Tensor]:
    columns = {"old_logprobs": [np.log(old).tolist()], "advantage": [advantage]}
    return batch_of([[0] * len(p)], columns=columns), two_tokens(p)


def by_logprob(spec: Any, p: List[float], old: List[float], advantage: List[float]) -> Tensor:
    """∂ℓ / ∂log p of each token."""
    batch, logits = surrogate(p, old, advantage)
    return gradient(lambda at: losses(spec, batch, at), logits)[:, 0] / (1 - torch.tensor(p, dtype=torch.float64))


# Sheet 52


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (Reduction("sequences"), 0.75),
        (Reduction("tokens"), 0.625),
        (Reduction("constant", 4), 0.3125),
        (Reduction("constant", 1), 1.25),  # mean over sequences of sums over tokens
    ],
)
def test_golden_numbers_of_the_aggregations(reduction: Reduction, expected: float) -> None:
    step = step_of([[0], [0, 0, 0]])
    measures = [sequence.target.astype(float) for sequence in step]
    values = [np.array([0, 1.0]), np.array([0, 0.5, 0.5, 0.5])]
    found = reduction.coefficients(step, measures)
    assert sum(float(c @ v) for c, v in zip(found, values, strict=True)) == pytest.approx(expected)


def test_where_all_lengths_are_equal_the_aggregations_differ_by_a_constant() -> None:
    step = step_of(TOKENS, columns={"advantage": [[1.5] * 2, [-0.5] * 2, [0.25] * 2]})

    def found(reduction: Any) -> Tensor:
        return gradient(lambda at: mean_loss({"name": "grpo", "reduction": reduction}, step, at), LOGITS)

    torch.testing.assert_close(found("tokens"), found("sequences"))
    torch.testing.assert_close(found({"constant": 8}) * 8 / 2, found("sequences"))


def test_fine_tuning_is_reinforcement_with_an_indicator_for_a_reward_over_the_probability() -> None:
    """E_π[1{y = y*} / π(y) ∇ log π(y)] = ∇ log π(y*); without 1 / π it is the gradient of DFT. Check 6, written out."""
    logits = torch.tensor([[0.2, -0.3, 0.9]], dtype=torch.float64)
    p = torch.softmax(logits, -1)[0]
    torch.testing.assert_close(p, torch.tensor([0.276221, 0.167537, 0.556242]).double(), rtol=0, atol=1e-6)

    def expected(reward: List[float]) -> Tensor:
        """Of REINFORCE, over the answers that the policy draws."""
        total = torch.zeros_like(logits)
        for answer in range(3):
            batch = batch_of([[answer]], columns={"advantage": [[reward[answer]]]})
            total -= p[answer] * gradient(lambda at, b=batch: losses("reinforce", b, at), logits)
        return total

    over_p, indicator = [0.0, float(1 / p[1]), 0.0], [0.0, 1.0, 0.0]
    of = {name: gradient(lambda at, n=name: -losses(n, batch_of([[1]]), at), logits) for name in ("nll", "dft")}
    torch.testing.assert_close(expected(over_p), of["nll"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(expected(indicator), of["dft"], rtol=1e-6, atol=1e-7)


def test_rloo_is_dr_grpo_times_a_constant_down_to_the_gradient() -> None:
    rewards = np.array([1.0, 0.0, 0.0])
    outcomes = Outcomes(rewards, np.zeros(3, np.int64), np.full(3, 2))

    def found(estimator: Any) -> Tensor:
        advantage = [row.tolist() for row in build_advantage(estimator)(outcomes)["advantage"]]
        step = step_of(TOKENS, columns={"advantage": advantage})
        return gradient(lambda at: mean_loss("reinforce", step, at), LOGITS)

    torch.testing.assert_close(found("leave_one_out"), found({"name": "group", "std": "none"}) * 3 / 2)


# Sheet 37


def test_golden_numbers_of_a_prefix_of_which_a_token_lost_its_advantage() -> None:
    """Check 6: dropped by its advantage, the token still counts in the mean."""
    p, old, advantage = [0.2, 0.45, 0.5, 0.9], [0.2, 0.4, 0.5, 0.8], [0.0, 0.875, 0.875, 0.875]
    batch, logits = surrogate(p, old, advantage)
    found = losses("grpo", batch, logits)
    assert found.tolist() == pytest.approx([0, -0.984375, -0.875, -0.984375], abs=1e-6)
    assert found.mean().item() == pytest.approx(-0.710938, abs=1e-6)
    slopes = by_logprob("grpo", p, old, advantage) / 4
    assert slopes.tolist() == pytest.approx([0, -0.246094, -0.21875, -0.246094], abs=1e-6)


def test_golden_numbers_of_a_ratio_beyond_the_clip() -> None:
    """Check 7: with A > 0 no gradient, with A < 0 all of it."""
    assert losses("grpo", *surrogate([0.6], [0.4], [0.875])).item() == pytest.approx(-1.05, abs=1e-6)
    assert by_logprob("grpo", [0.6], [0.4], [0.875]).item() == 0
    assert by_logprob("grpo", [0.6], [0.4], [-0.875]).item() == pytest.approx(1.5 * 0.875, abs=1e-6)


# Sheet 43


def mixed(advantage: float = 1.0) -> tuple[list[Sequence], Tensor]:
    """Check 3: two drawn tokens, and the three demonstrated ones of check 2."""
    own, expert = step_of([[0, 0], [0, 0, 0]])
    columns = {
        "advantage": np.array([0, advantage, advantage], np.float32),
        "old_logprobs": np.array([0, np.log(0.4), np.log(0.5)], np.float32),
    }
    own = replace(own, origin=np.array([Origin.PROMPT, Origin.ROLLOUT, Origin.ROLLOUT], np.uint8), columns=columns)
    return [own, expert], two_tokens([0.6, 0.5, 0.9, 0.5, 0.1])


def chord(mu: float, loss: str = "chord_phi") -> list[dict[str, Any]]:
    return [
        {"name": "grpo", "origins": ["rollout"], "reduction": "tokens", "dual_clip": 3.0, "weight": 1 - mu},
        {"name": loss, "origins": ["demonstration"], "weight": mu},
    ]


def total(spec: Any, step: list[Sequence], logits: Tensor) -> Tensor:
    objective = build_objective(spec)
    batch = objective.attach(collate(step), step, objective.coefficients(step))
    return objective.loss(LogitsPolicy(logits), batch).value


def test_golden_number_of_both_parts_each_by_its_own_count() -> None:
    step, logits = mixed()
    assert total(chord(0.0), step, logits).item() == pytest.approx(-1.1, abs=1e-6)
    assert total(chord(0.1), step, logits).item() == pytest.approx(-0.976999937, abs=1e-6)


def test_where_all_answers_are_worth_the_same_only_the_demonstrations_teach() -> None:
    """Check 5, and its limits: at 0 it is reinforcement alone, at 1 imitation alone."""
    step, logits = mixed(advantage=0.0)
    found = gradient(lambda at: total(chord(0.1), step, at), logits)
    assert not found[:2].any()
    assert found[2:].abs().sum() > 0
    step, logits = mixed()
    alone = gradient(lambda at: total(chord(1.0, "nll"), step, at), logits)
    assert not alone[:2].any()
    torch.testing.assert_close(alone[2:], gradient(lambda at: mean_loss("nll", step[1:], at), logits[2:]))
    assert not gradient(lambda at: total(chord(0.0), step, at), logits)[2:].any()
