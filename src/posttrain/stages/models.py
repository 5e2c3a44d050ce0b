"""Models that the recipe names, loaded as it wants them held."""

import torch

from posttrain.policy import ModelOptions, Policy
from posttrain.recipe import Model
from posttrain.stages.context import Context


def load_policy(context: Context, name: str, device: torch.device | None = None) -> Policy:
    """The policy of a model that the recipe names, on the rank's own device unless another is given."""
    model = context.model(name)
    with context.terminal.waiting(f"loading {name}"):
        return Policy.load(model.path, model_options(model, context.recipe.seed), device or context.ranks.device)


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
