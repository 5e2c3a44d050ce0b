"""One optimiser step's gradient: cut, score, weigh, add up."""

import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as List
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import Need, TokenScores
from posttrain.data.step import Draw, Step
from posttrain.objectives import Objective
from posttrain.objectives.objective import Loss
from posttrain.policy import Policy
from posttrain.policy.scoring import by_sequence
from posttrain.training.cutting import Part, cut, fillers
from posttrain.training.ranks import Ranks
from posttrain.training.sharding import is_sharded

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens computed at once where nothing else is asked for: more is no faster on a CPU, and takes more memory."""

Sums = dict[str, tuple[float, float]]
"""Metrics on their way to a mean: name -> (sum, count)."""
Records = dict[str, dict[str, float]]
"""What is remembered of samples: name -> sample id -> value."""


@dataclass
class StepResult:
    """What one step showed, over all ranks: the loss, metrics as means, counts.

    `records`: name -> sample id -> value, what the objective asks to be remembered. Of this rank alone: the number of
    micro-batches, and `offending`, the sequences of those whose loss is not finite.
    """

    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    input_tokens: int = 0
    sequences: int = 0
    micro_batches: int = 0
    records: Records = field(default_factory=dict)
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
    sequences: List[Sequence],
    token_budget: int,
    step: Step,
    ranks: Ranks,
    watch: Stopwatch,
) -> StepResult:
    """Add the gradient of this rank's share of a step to `.grad`. What comes out does not depend on `token_budget`.

    Raises `UserError` when no token of the step (on any rank) is a target of the objective.
    """
    result = StepResult()
    with watch.lap("time/forward"):
        sequences = objective.prepare(sequences, step)
    sequences = _with_whole_references(objective, sequences, ranks)
    rows = objective.coefficients(sequences, ranks.gather)
    plain = all(term.forward is None for term in objective.terms)  # others look into the rows themselves
    parts = cut(policy, sequences, rows, token_budget, keep_groups=objective.keeps_groups, share=plain)
    values: list[Tensor] = []
    metrics: list[Mapping[str, tuple[Tensor, Tensor | None]]] = []
    records: list[tuple[tuple[str, ...], Mapping[str, Tensor]]] = []
    for part in [*parts, *(fillers(parts, ranks) if is_sharded(policy) else [])]:
        batch, loss = _passed(policy, objective, part, step, watch)
        if part.counts:
            values.append(loss.value.detach())
            metrics.append(loss.metrics)
            records.append((batch.sample_ids, loss.records))
            result.tokens += len(batch.tokens)
            result.input_tokens += sum(len(sequence) for sequence in part.sequences)
            result.sequences += len(part.sequences)
    shares, sums = _read(values, metrics)
    result.offending = [
        s for part, value in zip(parts, shares, strict=True) if not isfinite(value) for s in part.sequences
    ]
    result.micro_batches = len(parts)
    result.loss = sum(shares)
    result.records = _recorded(records)
    _join_ranks(result, sums, ranks)
    return result


def _passed(policy: Policy, objective: Objective, part: Part, step: Step, watch: Stopwatch) -> tuple[Batch, Loss]:
    """Forward and backward through a micro-batch."""
    with watch.lap("time/data"):
        batch = replace(objective.attach(part.batch(policy), part.sequences, part.rows), step=step)
        batch = batch if policy.device.type == "cpu" else batch.to(policy.device)
    with watch.lap("time/forward"):
        loss = objective.loss(policy, batch)
    with watch.lap("time/backward"):
        if loss.value.requires_grad:
            loss.value.backward()  # type: ignore[no-untyped-call]
        part.finish()
    return batch, loss


def _with_whole_references(objective: Objective, sequences: List[Sequence], ranks: Ranks) -> List[Sequence]:
    """Stored scores of the reference are read where the whole step has them: else all are computed, for all alike."""
    names = sorted({need.name for term in objective.terms for need in term.needs if need.reference})
    if not names:
        return sequences
    lacking = [name for name in names if any(name not in sequence.columns for sequence in sequences)]
    dropped = {name for share in ranks.gather(lacking) for name in share}
    return [
        replace(sequence, columns={name: values for name, values in sequence.columns.items() if name not in dropped})
        if dropped & set(sequence.columns)
        else sequence
        for sequence in sequences
    ]


def step_seed(seed: int, index: int) -> int:
    """The seed of a step's own draws, of a run with `seed`."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def begin(
    index: int,
    total: int,
    epoch: float,
    seed: int,
    *,
    policy: Policy,
    token_budget: int,
    ranks: Ranks,
    draw: Draw | None = None,
    memory: Records | None = None,
    measured: dict[str, float] | None = None,
    watch: Stopwatch | None = None,
) -> Step:
    """The step `index` of `total` in a run with `seed`, with all that may be asked while it is prepared."""
    step = Step(
        index,
        total,
        epoch,
        step_seed(seed, index),
        policy,
        gather=ranks.gather,
        memory=memory if memory is not None else {},
        measured=measured if measured is not None else {},
    )

    def score(sequences: List[Sequence], needs: tuple[Need, ...]) -> list[TokenScores]:
        return score_sequences(policy, token_budget, ranks, sequences, needs, step)

    def gradient(objective: Objective, sequences: List[Sequence]) -> dict[str, Tensor]:
        return _gradient(policy, objective, sequences, token_budget, step, ranks)

    return replace(
        step, score=score, gradient=gradient, draw=draw or step.draw, lap=watch.lap if watch is not None else step.lap
    )


def _gradient(
    policy: Policy, objective: Objective, sequences: List[Sequence], token_budget: int, step: Step, ranks: Ranks
) -> dict[str, Tensor]:
    named = list(policy.trainable_parameters())
    before = [parameter.grad for _, parameter in named]
    for _, parameter in named:
        parameter.grad = None
    accumulate_gradients(policy, objective, sequences, token_budget, step, ranks, Stopwatch(policy.device))
    ranks.add_gradients([parameter for _, parameter in named])
    found = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    for (_, parameter), gradient in zip(named, before, strict=True):
        parameter.grad = gradient
    return found


@torch.no_grad()
def score_sequences(
    policy: Policy,
    token_budget: int,
    ranks: Ranks,
    sequences: List[Sequence],
    needs: tuple[Need, ...],
    step: Step | None = None,
) -> list[TokenScores]:
    """Scores of each sequence's target tokens, with dropout off and no graph. Every rank must call this as often."""
    training = policy.model.training
    policy.model.eval()
    parts = cut(policy, sequences, [{} for _ in sequences], token_budget)
    more = fillers(parts, ranks) if is_sharded(policy) and any(ranks.gather(len(parts))) else []
    found: dict[int, TokenScores] = {}
    for part in [*parts, *more]:
        scores = policy.scores(replace(part.batch(policy), step=step or Step()).to(policy.device), needs)
        part.finish()
        if part.counts:
            each = by_sequence(scores, [sequence.targets for sequence in part.sequences])
            found |= zip(part.indices, each, strict=True)
    policy.model.train(training)
    return [found[index] for index in range(len(sequences))]


def _read(values: List[Tensor], metrics: List[Mapping[str, tuple[Tensor, Tensor | None]]]) -> tuple[list[float], Sums]:
    """The losses of the micro-batches, and the sums of their metrics: the one time that a step waits for the device."""
    named = [(name, *pair) for found in metrics for name, pair in found.items()]
    counts = [count for _, _, count in named if count is not None]
    tensors = [*values, *(total for _, total, _ in named), *counts]
    numbers = torch.stack([tensor.float() for tensor in tensors]).tolist() if tensors else []
    totals, counted = numbers[len(values) : len(values) + len(named)], iter(numbers[len(values) + len(named) :])
    sums: Sums = {}
    for (name, _, count), total in zip(named, totals, strict=True):
        number = 0.0 if count is None else next(counted)
        if number or count is None:
            sums = add_metrics(sums, {name: (total, number)})
    return numbers[: len(values)], sums


def _recorded(found: List[tuple[tuple[str, ...], Mapping[str, Tensor]]]) -> Records:
    """Of a sample that comes twice in a step, the last value counts."""
    records: Records = {}
    for sample_ids, values in found:
        for name, tensor in values.items():
            records.setdefault(name, {}).update(zip(sample_ids, tensor.tolist(), strict=True))
    return records


def add_metrics(sums: Sums, more: Mapping[str, tuple[float, float]]) -> Sums:
    """The (sum, count) pairs of both, added by name."""
    added = dict(sums)
    for name, (total, count) in more.items():
        before = added.get(name, (0.0, 0.0))
        added[name] = (before[0] + total, before[1] + count)
    return added


def means(sums: Sums) -> dict[str, float]:
    """Means of (sum, count) pairs; a count of 0 marks a value that is a share of a sum already.

    Python's numbers, also of a source that reports numpy's: checkpoints keep them.
    """
    return {name: float(total / count if count else total) for name, (total, count) in sums.items()}


def _join_ranks(result: StepResult, sums: Sums, ranks: Ranks) -> None:
    mine = (result.loss, sums, result.tokens, result.input_tokens, result.sequences, result.records)
    joined: Sums = {}
    result.records = {}
    result.loss, result.tokens, result.input_tokens, result.sequences = 0.0, 0, 0, 0
    for loss, theirs, tokens, input_tokens, sequences, records in ranks.gather(mine):
        result.loss += loss
        result.tokens += tokens
        result.input_tokens += input_tokens
        result.sequences += sequences
        joined = add_metrics(joined, theirs)
        for name, values in records.items():
            result.records.setdefault(name, {}).update(values)
    result.metrics = means(joined)
