"""Optimisers by name, through torch and transformers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from posttrain.errors import UserError, nearest

OPTIMISERS = ("adamw", "adam", "sgd", "rmsprop", "adafactor")


def build_optimiser(
    parameters: Iterable[tuple[str, nn.Parameter]],
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    critic_lr_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """An optimiser over the trainable parameters. Weight decay is for matrices only: not for biases and norms.

    `betas` are Adam's; sgd reads the first as its momentum, rmsprop the second as its smoothing constant. The critic's
    parameters move at `critic_lr_factor` times the learning rate. Raises `UserError` for an unknown name and when
    nothing is trainable.
    """
    named = list(parameters)
    if not named:
        raise UserError("no parameter is trainable: check the adapter and what it freezes")
    chosen = [
        {
            "params": [p for name, p in named if name.startswith("critic.") == of_critic and (p.ndim >= 2) == matrix],
            "weight_decay": weight_decay if matrix else 0.0,
            "lr_factor": critic_lr_factor if of_critic else 1.0,
        }
        for of_critic in (False, True)
        for matrix in (True, False)
    ]
    groups: list[dict[str, Any]] = [group for group in chosen if group["params"]]
    if name in ("adamw", "adam"):
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        return kind(groups, lr=lr, betas=betas, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=betas[0])
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, alpha=betas[1])
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(groups, lr=lr, scale_parameter=False, relative_step=False)  # type: ignore[no-any-return]
    raise UserError(f"unknown optimizer '{name}': {nearest(name, OPTIMISERS)}")
