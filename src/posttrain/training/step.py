"""One optimiser step's gradient: cut, score, weigh, add up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.batch import Batch, collate, micro_batches
from posttrain.objectives import Objective
from posttrain.policy import Policy
from posttrain.training.ranks import Ranks


@dataclass(frozen=True)
class Position:
    """Where in the run a step is, for losses with a schedule and for random draws."""

    step: int
    total_steps: int
    epoch: float
    seed: int


@dataclass
class StepResult:
    """What one step showed, over all ranks: the loss, metrics as means, counts, and seconds by phase on this rank."""

    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    input_tokens: int = 0
    sequences: int = 0
    micro_batches: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    offending: list[Sequence] = field(default_factory=list)


class Stopwatch:
    """Seconds by phase. On a GPU phases are marked by events and read once, so that timing does not stall the queue."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._laps: list[tuple[str, Any, Any]] = []

    @contextmanager
    def lap(self, phase: str) -> Iterator[None]:
        """Time a block under the name of its phase."""
        start = self._now()
        yield
        self._laps.append((phase, start, self._now()))

    def seconds(self) -> dict[str, float]:
        """Sums by phase since the stopwatch was made."""
        if self._gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for phase, start, end in self._laps:
            spent = start.elapsed_time(end) / 1000 if self._gpu else end - start
            totals[phase] = totals.get(phase, 0.0) + spent
        return totals

    def _now(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def accumulate_gradients(
    policy: Policy,
    objective: Objective,
    sequences: list[Sequence],
    token_budget: int,
    position: Position,
    ranks: Ranks,
    watch: Stopwatch,
) -> StepResult:
    """Add the gradient of this rank's share of a step to `.grad`. What comes out does not depend on `token_budget`.

    Raises `UserError` when no token of the step (on any rank) is a target of the objective.
    """
    result = StepResult()
    rows = objective.coefficients(sequences, ranks.gather)
    parts = micro_batches(sequences, token_budget, layout=policy.layout, keep_groups=objective.keeps_groups)
    values: list[Tensor] = []
    sums: dict[str, tuple[float, float]] = {}
    for part in parts:
        with watch.lap("time/data"):
            chosen = [sequences[row] for row in part]
            batch = collate(chosen, pad_id=policy.tokenizer.pad_token_id or 0, layout=policy.layout)
            batch = _placed(objective.attach(batch, chosen, [rows[row] for row in part]), position, policy)
        with watch.lap("time/forward"):
            loss = objective.loss(policy, batch)
        with watch.lap("time/backward"):
            if loss.value.requires_grad:
                loss.value.backward()  # type: ignore[no-untyped-call]
        values.append(loss.value.detach())
        sums = add_metrics(sums, loss.metrics)
        result.tokens += len(batch.tokens)
        result.input_tokens += sum(len(sequence) for sequence in chosen)
        result.sequences += len(chosen)
    finite = [bool(torch.isfinite(value)) for value in values]
    result.offending = [sequences[row] for part, good in zip(parts, finite, strict=True) if not good for row in part]
    result.micro_batches = len(parts)
    result.loss = float(sum(values)) if values else 0.0
    _join_ranks(result, sums, ranks)
    return result


def _placed(batch: Batch, position: Position, policy: Policy) -> Batch:
    placed = replace(
        batch,
        step=position.step,
        total_steps=position.total_steps,
        epoch=position.epoch,
        seed=position.seed,
    )
    return placed if policy.device.type == "cpu" else placed.to(policy.device)


def add_metrics(
    sums: dict[str, tuple[float, float]], more: "dict[str, tuple[float, float]] | Any"
) -> dict[str, tuple[float, float]]:
    """Add (sum, count) pairs by name."""
    for name, (total, count) in more.items():
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + total, before[1] + count)
    return sums


def means(sums: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Means of (sum, count) pairs; a count of 0 marks a value that is a share of a sum already."""
    return {name: total / count if count else total for name, (total, count) in sums.items()}


def _join_ranks(result: StepResult, sums: dict[str, tuple[float, float]], ranks: Ranks) -> None:
    mine = (result.loss, sums, result.tokens, result.input_tokens, result.sequences)
    joined: dict[str, tuple[float, float]] = {}
    result.loss, result.tokens, result.input_tokens, result.sequences = 0.0, 0, 0, 0
    for loss, theirs, tokens, input_tokens, sequences in ranks.gather(mine):
        result.loss += loss
        result.tokens += tokens
        result.input_tokens += input_tokens
        result.sequences += sequences
        joined = add_metrics(joined, theirs)
    result.metrics = means(joined)
