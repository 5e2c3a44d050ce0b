"""Models that the recipe names, loaded as it wants them held."""

from dataclasses import replace

import torch

from posttrain.policy import ModelOptions, Policy
from posttrain.recipe import Model
from posttrain.stages.context import Context


def load_policy(context: Context, name: str, device: torch.device | None = None, *, reward: bool = False) -> Policy:
    """The policy of a model that the recipe names, on the rank's own device unless another is given.

    `reward`: as a reward model (see `ModelOptions`).
    """
    model = context.model(name)
    options = replace(model_options(model, context.recipe.seed), reward=reward)
    with context.terminal.waiting(f"loading {name}"):
        return Policy.load(model.path, options, device or context.ranks.device)


def model_options(model: Model, seed: int) -> ModelOptions:
    """How the recipe wants a model held."""
    return ModelOptions(
        dtype=model.dtype,
        attention=model.attention,
        gradient_checkpointing=model.gradient_checkpointing,
        compile=model.compile,
        weights=model.weights,
        seed=seed,
    )
