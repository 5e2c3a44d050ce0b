"""Objectives on given logits, and the check of their gradients by finite differences.

batch = batch_of([[0, 1], [2]], scalars={"reference_score": [-1.0, -2.0]})   # tokens of two sequences
losses("dft", batch, logits)                                                # [N], [S] or [G]
check_gradient({"name": "asft", "kl_weight": 1.0}, batch, logits, reference)
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from posttrain.data import Origin, Sequence
from posttrain.data.batch import Batch, collate
from posttrain.data.scores import Chunk, Need, TokenScores
from posttrain.objectives import Objective, build_objective
from posttrain.policy.head import chunk_scores


def step_of(
    tokens: List[List[int]],
    *,
    scalars: Mapping[str, List[float]] | None = None,
    columns: Mapping[str, List[List[float]]] | None = None,
    groups: List[str] | None = None,
) -> list[Sequence]:
    """Sequences whose targets are these tokens, each after one prompt token."""
    step = []
    for row, targets in enumerate(tokens):
        length = len(targets) + 1
        step.append(
            Sequence(
                tokens=np.array([0, *targets], np.int32),
                target=np.arange(length) > 0,
                origin=np.array([Origin.PROMPT] + [Origin.DEMONSTRATION] * len(targets), np.uint8),
                sample_id=f"sample{row}",
                group=groups[row] if groups else "",
                columns={name: np.array([np.nan, *of[row]], np.float32) for name, of in (columns or {}).items()},
                scalars={name: values[row] for name, values in (scalars or {}).items()},
            )
        )
    return step


def batch_of(tokens: List[List[int]], **more: Any) -> Batch:
    """The batch of `step_of(tokens, **more)`."""
    return collate(step_of(tokens, **more))


@dataclass(frozen=True)
class LogitsPolicy:
    """A policy that says `logits[N, V]` of a batch's target tokens, and whose reference says `reference[N, V]`."""

    logits: Tensor
    reference: Tensor | None = None

    def scores(self, batch: Batch, needs: tuple[Need, ...] = ()) -> TokenScores:
        chunk = Chunk(self.logits, batch.tokens, batch.key, self.reference, batch.step.seed)
        found = chunk_scores(chunk, needs)
        return TokenScores(found.pop("logprobs"), found)


def results(spec: Any, batch: Batch, logits: Tensor, reference: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
    """Losses `[N]`, `[S]` or `[G]` and metrics of an objective with a single term."""
    (term,) = spec.terms if isinstance(spec, Objective) else build_objective(spec).terms
    found = term.function(LogitsPolicy(logits, reference).scores(batch, term.needs), batch)
    return found if isinstance(found, tuple) else (found, {})


def losses(spec: Any, batch: Batch, logits: Tensor, reference: Tensor | None = None) -> Tensor:
    return results(spec, batch, logits, reference)[0]


def mean_loss(spec: Any, step: List[Sequence], logits: Tensor, reference: Tensor | None = None) -> Tensor:
    """What a step of these sequences costs after the objective's own reduction."""
    objective = spec if isinstance(spec, Objective) else build_objective(spec)
    batch = objective.attach(collate(step), step, objective.coefficients(step))
    return objective.loss(LogitsPolicy(logits, reference), batch).value


def gradient(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """`[N, V]`: the gradient of the sum of what `function` gives, by autograd."""
    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return found


class _StopGradients(TorchFunctionMode):
    """Records what every stop-gradient (`detach`, or any operation while gradients are off) gives, then repeats it.

    The first run is at the base point. In later runs, at displaced points, each stop-gradient gives what it gave then:
    so a difference of two runs is a difference of the function that the gradient is taken of.
    """

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.at: int | None = None

    def rewind(self) -> None:
        assert self.at is None or self.at == len(self.values), "the function took another way at a displaced point"
        self.at = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not Tensor.detach and torch.is_grad_enabled():
            return result
        if self.at is None:
            self.values.append(result.clone() if isinstance(result, Tensor) else result)
            return result
        self.at += 1
        return self.values[self.at - 1]


def finite_differences(function: Callable[[Tensor], Tensor], logits: Tensor, size: float = 1e-5) -> Tensor:
    """`[N, V]`: the gradient of the sum of what `function` gives, by central differences, stop-gradients held fixed."""
    logits = logits.double()
    differences = torch.zeros_like(logits)
    leaf = logits.clone().requires_grad_()  # `requires_grad` on, as in training: needs behave as they do there
    with _StopGradients() as fixed:
        function(leaf)
        for index in np.ndindex(*logits.shape):
            values = []
            for sign in (1, -1):
                displaced = logits.clone()
                displaced[index] += sign * size
                displaced.requires_grad_()
                fixed.rewind()
                values.append(function(displaced).sum().item())
            differences[index] = (values[0] - values[1]) / (2 * size)
        fixed.rewind()
    return differences


def check_gradient(
    spec: Any, batch: Batch, logits: Tensor, reference: Tensor | None = None, *, tolerance: float = 1e-7
) -> None:
    """Asserts that autograd's gradient with respect to the logits is that of central differences, in float64.

    Losses are added up with random factors, so that one of them cannot make up for another. A stop-gradient that the
    method forbids, or lacks, is not seen here: that takes a gradient known by hand.
    """
    reference = reference.double() if reference is not None else None
    batch = replace(batch, columns={name: value.double() for name, value in batch.columns.items()})
    count = len(losses(spec, batch, logits.double(), reference))
    factors = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5

    def summed(at: Tensor) -> Tensor:
        return factors * losses(spec, batch, at, reference)

    found, expected = gradient(summed, logits.double()), finite_differences(summed, logits)
    scale = max(1e-3, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale + 1e-9)
