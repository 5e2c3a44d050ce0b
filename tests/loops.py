"""Training loops over a handful of random sequences, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import torch
from steps import random_step
from torch import Tensor

from posttrain.adaptation import adapters
from posttrain.objectives import Objective, build_objective
from posttrain.policy import Policy
from posttrain.sources import Demonstrations
from posttrain.training.checkpoints import CheckpointStore
from posttrain.training.journal import Journal
from posttrain.training.loop import Loop, LoopSettings
from posttrain.training.optimisers import build_optimiser
from posttrain.training.ranks import Ranks

DATA = random_step(0, [9, 14, 5, 30, 12, 21, 8, 17, 26, 11])
"""Ten sequences; batches of four, so that three steps are more than an epoch."""


def tiny_policy(name: str = "llama", *, dropout: float | None = None) -> Policy:
    """A random model; with `dropout`, LoRA on it."""
    model: Any = architectures.build(name)
    if dropout is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = adapters["lora"](model, rank=4, dropout=dropout)
    return Policy(model, architectures.tokenizer())


def small_loop(
    folder: Path,
    *,
    steps: int = 7,
    checkpoint_every: int | None = 2,
    objective: Objective | None = None,
    policy: Policy | None = None,
    token_budget: int = 64,
    optimiser: str = "adamw",
    stop_after: int | None = None,
    learning_rate: Callable[[int], float] = lambda step: 1e-2 / (step + 1),
    settings: dict[str, Any] | None = None,
    **pieces: Any,
) -> Loop:
    """A loop whose journal and checkpoints are in `folder`; `stop_after` steps of this call it is interrupted."""
    policy = policy or tiny_policy()
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return stop_after is not None and asked > stop_after

    options = {"gradient_clip": 1.0, **(settings or {})}
    return Loop(
        policy=policy,
        source=Demonstrations(DATA, 4, seed=0, epochs=steps * 4 / len(DATA)),
        objective=objective or build_objective("nll"),
        optimiser=build_optimiser(policy.trainable_parameters(), optimiser, lr=1e-2, weight_decay=0.01),
        learning_rate=learning_rate,
        settings=LoopSettings(
            "sft", steps, len(DATA) / 4, token_budget, seed=0, checkpoint_every=checkpoint_every, **options
        ),
        journal=Journal(folder),
        ranks=Ranks(),
        checkpoints=CheckpointStore(folder / "checkpoints", "recipe"),
        best=CheckpointStore(folder / "best", "recipe"),
        should_stop=should_stop,
        faults=folder / "faults",
        **pieces,
    )


def trained(loop: Loop) -> dict[str, Tensor]:
    """Copies of the trainable weights as they are now."""
    return {name: parameter.detach().clone() for name, parameter in loop.policy.trainable_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
