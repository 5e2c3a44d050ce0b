"""What a loss is: `Term` (a pure function with its reduction), `Objective` (a sum of terms), and how recipes name them.

A new loss is one function:

    @objective("dft")
    def dft(scores: TokenScores, batch: Batch) -> Tensor:
        return -scores.logprobs.detach().exp() * scores.logprobs

It returns one value a target token `[N]` (or, with `level="sequence"`, one a sequence `[S]`; with `level="group"`,
one a group `[G]`), and may return `(values, metrics)`, where each metric is `[N]`, `[S]` or `[G]` and is averaged for
the log; NaN stands where it has no value. One of any other length is averaged as it is.
It never averages its loss itself: the reduction does, over the whole optimiser step.
"""

import inspect
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import REWARDS, Need, TokenScores
from posttrain.data.step import Gather, Step, alone
from posttrain.errors import UserError, nearest
from posttrain.objectives.reduction import TOKEN_MEAN, Level, Measure, Reduction
from posttrain.registry import Registry
from posttrain.schedules import Schedule, value_at

TermLoss = Tensor | tuple[Tensor, dict[str, Tensor]]


class Scorer(Protocol):
    """What objectives know of a policy (the objective that changes the forward pass asks for more by its own type)."""

    def scores(self, batch: Batch, needs: tuple[Need, ...] = ()) -> TokenScores:
        """Scores of the target tokens, with graph."""
        ...


Forward = Callable[[Any, Batch, tuple[Need, ...]], TokenScores]
"""How scores come about where that is not `policy.scores(batch, needs)`: mixed embeddings, perturbed weights ..."""
Prepare = Callable[[List[Sequence], Step], List[Sequence]]
"""What a loss must know of the whole step before its first backward: this rank's sequences with more scalars or
columns. What it adds must depend on the step alone, not on how ranks and micro-batches cut it."""
Check = Callable[[List[Sequence], List[Measure]], None]
"""Raises `UserError` for sequences of a step that a term counts and cannot read. They come with their measures."""


@dataclass(frozen=True)
class Loss:
    """`value`: this micro-batch's share of the step's loss. `metrics`: name -> (sum, count), to be added up over
    micro-batches and ranks; without a count it is a share of a sum. They stay on the device: nothing waits for it.
    `records`: name -> `[S]`, what the run is to remember of these sequences' samples."""

    value: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor | None]]
    records: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One loss with its reduction, its share of the tokens and its weight in the sum.

    `origins`: only targets of these origins count (None: all). `where`: a scalar (0 or more) that says how much the
    sequence counts, or "not " and a scalar, for those where it is 0. `weight_column`: a column that says how much each
    token counts. All three hold in the numerator and in the denominator. `weight`: a factor, or a schedule of it, which
    is logged. `scalars`, `columns`: those that every sequence which it counts must have. `check` raises
    `UserError` for what else it cannot read; it and `prepare` run once a step, before the first forward.
    `remember`: those of its metrics `[S]` that are kept by sample id, for `prepare` to find in `step.memory` when the
    sample comes again.
    """

    name: str
    function: Callable[[TokenScores, Batch], TermLoss]
    needs: tuple[Need, ...] = ()
    reduction: Reduction = TOKEN_MEAN
    level: Level = "token"
    origins: frozenset[Origin] | None = None
    where: str | None = None
    weight_column: str | None = None
    weight: float | Schedule = 1.0
    forward: Forward | None = None
    scalars: tuple[str, ...] = ()
    prepare: Prepare | None = None
    columns: tuple[str, ...] = ()
    check: Check | None = None
    remember: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.reduction.check_level(self.level)

    def measure(self, sequence: Sequence) -> Measure:
        """`[T]`: how much each token of a sequence counts in this term.

        Raises `UserError` for a scalar or a weight column that is missing, negative or not finite.
        """
        chosen = sequence.target
        if self.origins is not None:
            chosen = chosen & np.isin(sequence.origin, [int(origin) for origin in self.origins])
        measure = chosen.astype(np.float64)
        if not chosen.any():
            return measure
        if self.where is not None:
            measure *= self._share(sequence, self.where)
        if self.weight_column is not None:
            measure[chosen] *= self._weights(sequence)[chosen]
            if not (np.isfinite(measure).all() and (measure >= 0).all()):
                raise UserError(
                    f"objective '{self.name}': weight column '{self.weight_column}' of sample {sequence.sample_id} has "
                    "a weight that is negative or not finite; weights count tokens, so they must be 0 or more"
                )
        if measure.any():
            for name in self.scalars:
                self._scalar(sequence, name)
            for name in self.columns:
                self._column(sequence, name, "column")
        return measure

    def lacks_anything(self, batch: Batch) -> bool:
        """Has no sequence of a micro-batch what the term reads? Then none of them counts in it: see `measure`."""
        return not (batch.columns.keys() >= set(self.columns) and batch.scalars.keys() >= set(self.scalars))

    def _share(self, sequence: Sequence, where: str) -> float:
        if where.startswith(_NOT):
            return float(self._scalar(sequence, where.removeprefix(_NOT)) == 0)
        value = self._scalar(sequence, where)
        if not 0 <= value < float("inf"):
            raise UserError(
                f"objective '{self.name}': scalar '{where}' of sample {sequence.sample_id} is {value}; 'where' counts "
                "sequences by it, so it must be 0 or more"
            )
        return value

    def _scalar(self, sequence: Sequence, name: str) -> float:
        if name not in sequence.scalars:
            raise UserError(
                f"objective '{self.name}': sample {sequence.sample_id} has no scalar '{name}': "
                f"{nearest(name, sequence.scalars)} (data read the columns of numbers that their 'scalars' name)"
            )
        return float(sequence.scalars[name])

    def _weights(self, sequence: Sequence) -> Measure:
        return self._column(sequence, str(self.weight_column), "weight column").astype(np.float64)

    def _column(self, sequence: Sequence, name: str, kind: str) -> npt.NDArray[np.float32]:
        if name not in sequence.columns:
            raise UserError(
                f"objective '{self.name}': sample {sequence.sample_id} has no {kind} '{name}': "
                f"{nearest(name, sequence.columns)}"
            )
        return sequence.columns[name]


_NOT = "not "


class Objective:
    """A sum of terms. `a + b` and `0.1 * a` are objectives; every term keeps its own reduction and denominator."""

    def __init__(self, *terms: Term) -> None:
        self.terms = terms

    def __add__(self, other: "Objective") -> "Objective":
        return Objective(*self.terms, *other.terms)

    def __rmul__(self, factor: float) -> "Objective":
        return Objective(*(replace(term, weight=_scaled(term.weight, factor)) for term in self.terms))

    @property
    def needs_reference(self) -> bool:
        """Does any term compare with a reference model?"""
        return any(need.reference for term in self.terms for need in term.needs)

    @property
    def keeps_groups(self) -> bool:
        """Must the sequences of a group be in one micro-batch?"""
        return any(term.level == "group" for term in self.terms)

    @property
    def needs_pairs(self) -> bool:
        """Does any term read, or choose by, which side of a preference pair a sequence is?"""
        return "chosen" in self.scalars

    @property
    def scalars(self) -> frozenset[str]:
        """The scalars that the terms read or choose sequences by."""
        chosen_by = (term.where.removeprefix(_NOT) for term in self.terms if term.where is not None)
        return frozenset(chosen_by).union(*(term.scalars for term in self.terms))

    def prepare(self, sequences: List[Sequence], step: Step) -> List[Sequence]:
        """This rank's share of the step, with what the terms must know of the whole step before its first backward."""
        for prepare in dict.fromkeys(term.prepare for term in self.terms):
            sequences = sequences if prepare is None else prepare(sequences, step)
        return sequences

    def check(self, sequences: List[Sequence]) -> None:
        """Raises `UserError` where sequences, as data give them, lack what a term reads and does not prepare."""
        for term in self.terms:
            prepared = term.prepare is not None
            measures = [s.target.astype(np.float64) if prepared else term.measure(s) for s in sequences]
            if term.check is not None:
                term.check(sequences, measures)

    def coefficients(self, sequences: List[Sequence], gather: Gather = alone) -> list[dict[str, Measure]]:
        """For each sequence of this rank's share of the step: what each term's reduction gives its tokens.

        Raises `UserError` when no token of the whole step counts in any term: such a step would train nothing.
        """
        rows: list[dict[str, Measure]] = [{} for _ in sequences]
        for key, term in self._keyed():
            measures = [term.measure(sequence) for sequence in sequences]
            if term.check is not None:
                term.check(sequences, measures)
            values = term.reduction.coefficients(sequences, measures, term.level, gather)
            for row, value in zip(rows, values, strict=True):
                row[key] = value
        if not sum(gather(float(sum(value.sum() for row in rows for value in row.values())))):
            raise UserError("a step without a single trained token: nothing in this data is a target of the objective")
        return rows

    def attach(self, batch: Batch, sequences: List[Sequence], rows: List[Mapping[str, Measure]]) -> Batch:
        """The batch of these sequences with their coefficients: `[N]`, `[S]` or `[G]` for each term."""
        flat: dict[str, Tensor] = {}
        for key, term in self._keyed():
            if term.level == "token":
                values = np.concatenate([row[key][s.target] for row, s in zip(rows, sequences, strict=True)])
            else:
                values = np.array([row[key][0] for row in rows])
            tensor = torch.from_numpy(values.astype(np.float32)).to(batch.tokens.device)
            if term.level == "group":
                tensor = torch.zeros(batch.groups, device=tensor.device).scatter_reduce(0, batch.group, tensor, "amax")
            flat[key] = tensor
        return replace(batch, coefficients=flat)

    def loss(self, policy: Scorer, batch: Batch) -> Loss:
        """This micro-batch's share of the step's loss. `batch` must carry the coefficients of `attach`."""
        value: Tensor = torch.zeros((), device=batch.tokens.device)
        metrics: dict[str, tuple[Tensor, Tensor | None]] = {}
        records: dict[str, Tensor] = {}
        scored: dict[Forward | None, TokenScores] = {}
        for key, term in self._keyed():
            if term.lacks_anything(batch):
                continue
            if term.forward not in scored:
                scored[term.forward] = self._forward(policy, batch, term.forward)
            result = term.function(scored[term.forward], batch)
            losses, extra = result if isinstance(result, tuple) else (result, {})
            coefficients = batch.coefficients[key]
            if losses.shape != coefficients.shape:
                raise ValueError(f"objective '{term.name}' gave {tuple(losses.shape)}, not {tuple(coefficients.shape)}")
            share = (coefficients * losses.float()).sum()
            weight, label = value_at(term.weight, batch.step), self._label(key, term)
            value = value + weight * share
            if callable(term.weight):
                metrics[f"{label}weight"] = (_number(weight, share), _number(1, share))
            if label:
                metrics[f"{label}loss"] = (share.detach(), None)
            metrics |= {label + name: _sum_and_count(found, coefficients, batch) for name, found in extra.items()}
            records |= {name: extra[name].detach() for name in term.remember}
        if None in scored and scored[None].logprobs.requires_grad and value.requires_grad:
            metrics["imitated"] = _imitated(value, scored[None].logprobs, batch)
        logprobs = scored[None].logprobs.detach() if None in scored else None
        if logprobs is not None and REWARDS.name not in scored[None].extra:  # a reward model has none
            metrics["nll"] = (-logprobs.sum(), _number(len(logprobs), logprobs))
        return Loss(value, metrics, records)

    def _forward(self, policy: Scorer, batch: Batch, forward: Forward | None) -> TokenScores:
        needs = {need.name: need for term in self.terms if term.forward == forward for need in term.needs}
        chosen = tuple(needs.values())
        return forward(policy, batch, chosen) if forward else policy.scores(batch, chosen)

    def _label(self, key: str, term: Term) -> str:
        """What stands before the names of a term's metrics; two terms of one name keep apart by their place."""
        names = [other.name for other in self.terms]
        return "" if len(names) == 1 else f"{term.name if names.count(term.name) == 1 else key}/"

    def _keyed(self) -> list[tuple[str, Term]]:
        return [(f"{index}:{term.name}", term) for index, term in enumerate(self.terms)]


def _scaled(weight: float | Schedule, factor: float) -> float | Schedule:
    return (lambda step: factor * weight(step)) if callable(weight) else factor * weight


def _imitated(value: Tensor, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """What tokens that others wrote weigh, and what all do: sums of |∂ loss / ∂ log p|."""
    weights = torch.autograd.grad(value, logprobs, retain_graph=True, allow_unused=True)[0]
    sizes = torch.zeros_like(logprobs) if weights is None else weights.abs()
    return sizes[batch.origin != Origin.ROLLOUT].sum(), sizes.sum()


def _sum_and_count(values: Tensor, coefficients: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Metrics of tokens (sequences) that the term does not count are left out of its averages; NaN is no value."""
    counted = coefficients != 0
    if len(counted) == len(batch.tokens) != len(values) == batch.sequences:
        counted = batch.sum_by_sequence(counted.float()) > 0
    values = values.detach().float()
    kept = ~values.isnan()
    if len(values) == len(counted):
        kept = kept & counted
    return torch.where(kept, values, 0.0).sum(), kept.sum().float()


def _number(value: float, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)


@dataclass(frozen=True)
class Declaration:
    """What the decorator `objective` says of a loss function."""

    needs: tuple[Need, ...] | Callable[..., tuple[Need, ...]]
    reduction: Reduction
    level: Level
    forward: Callable[..., Forward] | None
    scalars: tuple[str, ...]
    prepare: Prepare | None
    prepare_for: Callable[..., Prepare | None] | None = None
    columns: tuple[str, ...] = ()
    check: Check | None = None
    remember: tuple[str, ...] = ()


objectives: Registry[Callable[..., TermLoss]] = Registry("objective")
"""Loss functions by the name that a recipe gives them."""
declarations: dict[str, Declaration] = {}
COMMON = ("weight", "reduction", "origins", "where", "weight_column", "embedding_noise")
"""Options that every term has."""


def objective(
    name: str,
    *,
    needs: tuple[Need, ...] | Callable[..., tuple[Need, ...]] = (),
    reduction: Reduction = TOKEN_MEAN,
    level: Level = "token",
    forward: Callable[..., Forward] | None = None,
    scalars: tuple[str, ...] = (),
    prepare: Prepare | None = None,
    prepare_for: Callable[..., Prepare | None] | None = None,
    columns: tuple[str, ...] = (),
    check: Check | None = None,
    remember: tuple[str, ...] = (),
) -> Callable[[Callable[..., TermLoss]], Callable[..., TermLoss]]:
    """Decorator: a recipe's `objective: name` is this loss.

    `needs`: the scores it reads beside `logprobs`, or a function of its options that says so. `reduction`: its default,
    which a recipe may change. `scalars`, `columns`: those that every sequence which counts must have; a loss that reads
    `chosen` makes a train stage encode preference pairs. `forward`: a function of its options (or a class made
    with them) that gives its `Forward`; where that has a `prepare`, it is the loss's. `prepare`: what it must know of
    the whole step before its first backward; `prepare_for`: where that depends on its options, a function of them that
    gives it, or None. `check`: what else it refuses, before the first forward. `remember`: metrics that `prepare` finds
    at a sample's next visit.
    """

    def declare(function: Callable[..., TermLoss]) -> Callable[..., TermLoss]:
        taken = set(inspect.signature(function).parameters) & set(COMMON)
        if taken:
            raise TypeError(f"objective '{name}': every term has {sorted(taken)} already; call its option otherwise")
        declarations[name] = Declaration(
            needs, reduction, level, forward, scalars, prepare, prepare_for, columns, check, remember
        )
        return objectives.register(name)(function)

    return declare
