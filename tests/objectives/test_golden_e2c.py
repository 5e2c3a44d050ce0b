"""The loss of explore and execute: advantages that differ within an answer, by the checks of sheet 33."""

import pytest
import torch
from gradients import batch_of

from posttrain.data.scores import TokenScores
from posttrain.objectives.policy_gradient import clipped_surrogate


def loss(policy: list[float], old: list[float], advantages: list[float]) -> torch.Tensor:
    batch = batch_of([[0] * len(policy)], columns={"old_logprobs": [old], "advantage": [advantages]})
    found, _ = clipped_surrogate(TokenScores(torch.tensor(policy)), batch, dual=3.0)
    return found


def test_golden_loss() -> None:
    found = loss([-0.5, -1, -1, -1], [-1, -1, -1, -1], [2, 2, 1, 1])
    assert found.tolist() == pytest.approx([-2.4, -2, -1, -1])
    assert found.mean().item() == pytest.approx(-1.6)  # over tokens, and not over weights
    assert loss([1.0], [-1.0], [-1.0]).item() == pytest.approx(3)  # not e^2: the dual clip
