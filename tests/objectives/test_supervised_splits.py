"""Rule 3 of the house for every supervised objective: any split of a step, padded or packed, has the same gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import build, tokenizer
from steps import random_step
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.batch import Layout, collate
from posttrain.data.step import Step
from posttrain.objectives import build_objective
from posttrain.policy import Policy

SPECS = [
    "dft",
    "focal",
    "chord_phi",
    "iw_sft",
    {"name": "iw_sft", "ratio": "token"},
    "unlikelihood",
    {"name": "otr", "draws": 8},
    {"name": "otr", "estimator": "exact", "reduction": "tokens"},
    "asft",
    {"name": "asft", "direction": "reverse"},
    {"name": "sft_kl", "kl_weight": 1.0, "reduction": "sequences"},
    "sft_entropy",
    "gem",
    "poft",
    {"name": "glow", "beta": 0.1},
    "ift",
    {"name": "ift", "mix": 0.5, "side": "earlier", "embeddings": "trained", "prediction_temperature": 0.7},
    {"name": "distillation", "divergence": "jsd", "temperature": 2.0},
    {"name": "nll", "embedding_noise": 5.0},
    {"name": "nll", "weight_column": "weight", "reduction": "sequences"},
    {"name": "nll", "embedding_noise": {"rate": 0.5, "ramp": 0, "dropout": 0.5}},
    [{"name": "otr", "draws": 4, "embedding_noise": 5.0}, {"name": "dft", "origins": ["rollout"], "weight": 0.3}],
]
STEP = [
    replace(
        sequence, scalars={"negative": float(row % 2), "reference_score": -1.0 - row, "previous_loss": 2.0 * row + 1}
    )
    for row, sequence in enumerate(random_step(1, [30, 3, 17, 9, 1, 12]))
]
CUTS = [[[i] for i in range(6)], [[5, 2, 4], [1], [0, 3]]]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """In float64, and some way from its reference."""
    policy = Policy(build("llama").double(), tokenizer())
    policy.keep_reference()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return policy


def gradient(policy: Policy, spec: Any, cut: list[list[int]], layout: Layout, seed: int = 3) -> Tensor:
    objective = build_objective(spec)
    policy.model.zero_grad()
    rows = objective.coefficients(STEP)
    for part in cut:
        chosen: list[Sequence] = [STEP[i] for i in part]
        batch = objective.attach(collate(chosen, pad_id=258, layout=layout), chosen, [rows[i] for i in part])
        objective.loss(policy, replace(batch, step=Step(seed=seed, epoch=1.5))).value.backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_gradient_is_the_same_for_every_split(policy: Policy, spec: Any) -> None:
    expected = gradient(policy, spec, [list(range(6))], "padded")
    assert expected.norm() > 1e-4
    for cut in CUTS:
        for layout in ("padded", "packed"):
            found = gradient(policy, spec, cut, layout)
            assert float((found - expected).norm()) < 1e-6 * float(expected.norm()), (cut, layout)


@pytest.mark.parametrize("spec", [{"name": "otr", "draws": 8}, {"name": "nll", "embedding_noise": 5.0}], ids=str)
def test_what_is_drawn_changes_with_the_step(policy: Policy, spec: Any) -> None:
    first, second = (gradient(policy, spec, [list(range(6))], "padded", seed) for seed in (3, 4))
    assert float((first - second).norm()) > 1e-3 * float(first.norm())
