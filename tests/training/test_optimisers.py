"""Optimisers by name."""

import pytest
import torch
from architectures import build
from torch import nn

from posttrain.errors import UserError
from posttrain.training.optimisers import OPTIMISERS, build_optimiser


def quadratic(optimiser_of: object, steps: int = 5) -> torch.Tensor:
    """A matrix after some steps down a quadratic."""
    weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    optimiser = optimiser_of([("weight", weight)])  # type: ignore[operator]
    for _ in range(steps):
        optimiser.zero_grad()
        ((weight - 0.3) ** 2).sum().backward()
        optimiser.step()
    return weight.detach()


def test_adamw_is_torchs_though_fused() -> None:
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    ours = quadratic(lambda named: build_optimiser(named, "adamw", **options))  # type: ignore[arg-type]
    theirs = quadratic(lambda named: torch.optim.AdamW([p for _, p in named], **options))  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_goes_downhill(name: str) -> None:
    start = quadratic(lambda named: build_optimiser(named, name, lr=0.01), steps=0)
    moved = quadratic(lambda named: build_optimiser(named, name, lr=0.01))
    assert ((moved - 0.3) ** 2).sum() < ((start - 0.3) ** 2).sum()


def test_betas_are_read_by_those_that_have_moments() -> None:
    for name in ("adam", "adamw", "sgd", "rmsprop"):
        one, other = (
            quadratic(lambda named, name=name, betas=betas: build_optimiser(named, name, lr=0.01, betas=betas))
            for betas in ((0.9, 0.999), (0.1, 0.5))
        )
        assert not torch.equal(one, other)


def test_weight_decay_is_for_matrices_only() -> None:
    optimiser = build_optimiser(build("gpt2").named_parameters(), lr=0.1, weight_decay=0.5)
    decayed, plain = optimiser.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown optimizer 'adamww'.*did you mean 'adamw'"):
        build_optimiser([("w", nn.Parameter(torch.zeros(1)))], "adamww", lr=1)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter is trainable"):
        build_optimiser([], lr=1)
