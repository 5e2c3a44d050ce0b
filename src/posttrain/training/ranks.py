"""The processes of a run: one, or several under `accelerate launch` / `torchrun`."""

import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.distributed.tensor import DTensor

from posttrain.errors import UserError

Result = TypeVar("Result")

PATIENCE = timedelta(hours=6)
"""How long ranks wait for one another: longer than the first rank's evaluations, short of for ever."""
MESSAGE_ELEMENTS = 2**24
"""Gradients travel in messages of about this many numbers, so that no second copy of all of them is needed."""


class Ranks:
    """Which process this is, and what processes say to one another. With one process every method is the identity."""

    def __init__(self) -> None:
        _check_launcher()
        on_cpu = _is_true("ACCELERATE_USE_CPU") or (_launched() and not _has_accelerator())
        self._state: Any = PartialState(cpu=on_cpu, **({"timeout": PATIENCE} if _launched() else {}))
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.device: torch.device = self._state.device

    @property
    def is_main(self) -> bool:
        """Is this the process that writes?"""
        return self.rank == 0

    @property
    def launched_with_fsdp(self) -> bool:
        """Did `accelerate launch --use_fsdp` start this run?"""
        return self.count > 1 and _is_true("ACCELERATE_USE_FSDP")

    @property
    def notes(self) -> tuple[str, ...]:
        """What the launcher asks for and is not done, in words for the user."""
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision in ("no", ""):
            return ()
        return (f"accelerate's mixed_precision={precision} is not read: the recipe's model.dtype decides",)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], Result]) -> Result:
        """`work()` on the first rank; what it returns, or raises, on every rank."""
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:
                failure = error
                outcome[1] = error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}")
        dist.broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise outcome[1]
        result: Result = outcome[0]
        return result

    def wait(self) -> None:
        """Until every rank is here."""
        self._state.wait_for_everyone()

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum the gradients over ranks, in float32. A parameter without a gradient on any rank keeps none.

        Sharded parameters are left alone: their gradients are summed while they are cut.
        """
        own = [p for p in parameters if not isinstance(p, DTensor)]
        if self.count == 1 or not own:
            return
        found = torch.tensor([float(p.grad is not None) for p in own], device=self.device)
        dist.all_reduce(found)
        moved = [parameter for parameter, ranks in zip(own, found.tolist(), strict=True) if ranks]
        for message in _messages(moved):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in message]
            flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
            dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for parameter, gradient, part in zip(message, gradients, parts, strict=True):
                parameter.grad = gradient.copy_(part.view_as(gradient))


def _messages(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    messages: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if not messages or parameter.numel() > room:
            messages.append([])
            room = MESSAGE_ELEMENTS
        messages[-1].append(parameter)
        room -= parameter.numel()
    return messages


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _has_accelerator() -> bool:
    """One that ranks can talk through; Apple's cannot."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type != "mps"


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _check_launcher() -> None:
    """Refuse what `accelerate launch` can ask for and this program does not do."""
    if _is_true("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("accelerate launch asks for FSDP 1; only FSDP 2 is supported: add --fsdp_version 2")
    for variable, name in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if _is_true(variable):
            raise UserError(
                f"accelerate launch asks for {name}, which is not supported: use --use_fsdp --fsdp_version 2"
            )


def _travels(error: Exception) -> bool:
    """Can this exception be sent to other processes?"""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True
