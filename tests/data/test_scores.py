"""Quantities of one chunk of logits stay finite where tokens are impossible."""

import pytest
import torch

from posttrain.data.scores import ENTROPY, FORWARD_KL, REVERSE_KL, Chunk


@pytest.mark.parametrize("need", [ENTROPY, FORWARD_KL, REVERSE_KL], ids=lambda need: need.name)
def test_a_token_of_probability_zero_adds_nothing(need):
    logits = torch.tensor([[1.0, 2.0, float("-inf")]], requires_grad=True)
    reference = torch.tensor([[0.5, 0.0, float("-inf")]])
    chunk = Chunk(logits, torch.tensor([0]), torch.tensor([7]), reference)
    smaller = Chunk(logits[:, :2].detach(), torch.tensor([0]), torch.tensor([7]), reference[:, :2])
    value = need.function(chunk)
    assert float(value) == pytest.approx(float(need.function(smaller)), rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(gradient).all()
