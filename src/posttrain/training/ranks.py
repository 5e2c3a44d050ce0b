"""The processes of a run: one, or several under `accelerate launch` / `torchrun`."""

from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn


class Ranks:
    """Which process this is, and what processes say to one another. With one process every method is the identity."""

    def __init__(self) -> None:
        self._state: Any = PartialState()
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.device: torch.device = self._state.device

    @property
    def is_main(self) -> bool:
        """Is this the process that writes?"""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        self._state.wait_for_everyone()

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum the gradients over ranks, in one message; a parameter without a gradient on a rank counts as 0."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
        dist.all_reduce(flat)
        offset = 0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            part: Tensor = flat[offset : offset + gradient.numel()]
            parameter.grad = part.view_as(gradient).to(gradient.dtype)
            offset += gradient.numel()
