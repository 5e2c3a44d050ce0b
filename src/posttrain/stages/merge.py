"""The merge stage: the weighted mean of models; of one model, its adapter folded in."""

from typing import Any

import torch

from posttrain.errors import UserError
from posttrain.recipe import Merge
from posttrain.stages.context import Context
from posttrain.stages.models import load_policy
from posttrain.stages.plan import Plan
from posttrain.stages.shape import Shape


def plan_merge(context: Context, name: str, stage: Merge) -> Plan:
    """Check the models and their weights."""
    _check_shapes(context, name, stage)
    weights = stage.weights
    if weights is not None and (len(weights) != len(stage.models) or sum(weights) <= 0):
        raise UserError(
            f"stage '{name}': {len(stage.models)} models need as many 'weights' with a positive sum, found {weights}"
        )
    return Plan({"models": len(stage.models)})


def _check_shapes(context: Context, name: str, stage: Merge) -> None:
    """Raises `UserError` when the models differ in a parameter's name or shape."""
    first: dict[str, torch.Size] = {}
    for model in stage.models:
        shapes = {key: p.shape for key, p in Shape.of(context.origin(model)).model.named_parameters()}
        first = first or shapes
        different = sorted(key for key in {*first, *shapes} if first.get(key) != shapes.get(key))
        if different:
            raise UserError(f"stage '{name}': '{stage.models[0]}' and '{model}' differ at parameter '{different[0]}'")


def run_merge(context: Context, name: str, stage: Merge) -> dict[str, Any]:
    """Average in float32, parameter by parameter, and save. Raises `UserError` when the models' shapes differ."""
    with context.terminal.waiting(f"merging {name}"):
        context.ranks.on_main(lambda: _merge(context, name, stage))
    return {"models": len(stage.models)}


@torch.no_grad()
def _merge(context: Context, name: str, stage: Merge) -> None:
    weights = stage.weights or [1.0] * len(stage.models)
    shares = [weight / sum(weights) for weight in weights]
    merged = load_policy(context, stage.models[0])
    # Tied weights appear once among the named parameters, so nothing is averaged twice.
    total = {key: shares[0] * p.float() for key, p in merged.model.named_parameters()}
    for other, share in zip(stage.models[1:], shares[1:], strict=True):
        for key, parameter in load_policy(context, other).model.named_parameters():
            if key not in total or total[key].shape != parameter.shape:
                raise UserError(f"stage '{name}': '{stage.models[0]}' and '{other}' differ at parameter '{key}'")
            total[key] += share * parameter.float()
    for key, parameter in merged.model.named_parameters():
        parameter.copy_(total[key])
    merged.save(context.folder / "models" / name)
