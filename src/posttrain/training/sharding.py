"""Weights cut over the ranks (FSDP 2): each rank holds a share of every parameter, gradient and optimiser moment.

The loop does not know whether weights are cut. What differs is here: gradients are summed (not averaged: coefficients
hold the denominator of the whole step already), every rank runs the same number of passes, and whatever is written to
disk is whole again, so that a checkpoint can be read with and without sharding and on any number of ranks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from posttrain.policy import Policy
from posttrain.training.ranks import Ranks


def shard(policy: Policy, ranks: Ranks) -> None:
    """Cut the policy's weights: block by block, and the rest with the scorer, whose forward is the whole computation.

    Before the optimiser is made: the parameters are other objects afterwards.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    sums = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in _blocks(policy.model):
        fully_shard(block, mesh=mesh, mp_policy=sums)
    fully_shard(policy.scorer, mesh=mesh, mp_policy=sums)
    for module in policy.scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists: a transformer's layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def is_sharded(policy: Policy) -> bool:
    """Are the policy's weights cut over the ranks?"""
    return isinstance(policy.scorer, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor. Every rank must call it for the same tensors in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(full: Tensor, like: Tensor) -> Tensor:
    """`full`, cut as `like` is, on its device."""
    if not isinstance(like, DTensor):
        return full
    placed = full.to(like.device, like.dtype)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def trained_weights(policy: Policy, *, keep: bool) -> dict[str, Tensor]:
    """The trainable parameters by name, whole, on the CPU; empty on ranks that do not `keep` them."""
    weights = {}
    for name, parameter in policy.trainable_parameters():
        full = whole(parameter.detach())
        if keep:
            weights[name] = full.cpu()
    return weights


@torch.no_grad()
def load_trained_weights(policy: Policy, weights: Mapping[str, Tensor]) -> None:
    """Put back what `trained_weights` gave."""
    for name, parameter in policy.trainable_parameters():
        parameter.copy_(share_of(weights[name], parameter))


@torch.no_grad()
def model_state(policy: Policy, *, keep: bool) -> dict[str, Tensor] | None:
    """The whole state dict of a sharded model, on the CPU, for `Policy.save`; None where it needs no help.

    Tied parameters are one tensor under several names, as in the model.
    """
    if not is_sharded(policy):
        return None
    state: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, value in policy.model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            full = whole(value.detach())
            seen[id(value)] = full.cpu() if keep else full[:0]
        state[name] = seen[id(value)]
    return state


def optimiser_state(optimiser: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """The optimiser's state dict with whole tensors on the CPU; empty on ranks that do not `keep` it."""
    content = optimiser.state_dict()
    state: dict[Any, dict[str, Any]] = {}
    for index, entries in content["state"].items():
        full = {key: whole(value) if isinstance(value, Tensor) else value for key, value in entries.items()}
        if keep:
            state[index] = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in full.items()}
    return {"state": state, "param_groups": content["param_groups"]} if keep else {}


def load_optimiser_state(optimiser: torch.optim.Optimizer, content: Mapping[str, Any]) -> None:
    """Put back what `optimiser_state` gave."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {
        index: {key: _moment(value, parameters[index]) for key, value in entries.items()}
        for index, entries in content["state"].items()
    }
    optimiser.load_state_dict({"state": state, "param_groups": content["param_groups"]})


def _moment(value: Any, parameter: nn.Parameter) -> Any:
    """Moments have the parameter's shape and are cut like it; step counts are not."""
    if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
        return share_of(value, parameter)
    return value
