"""What a loss is: `Term` (a pure function with its reduction), `Objective` (a sum of terms), and how recipes name them.

A new loss is one function:

    @objective("dft")
    def dft(scores: TokenScores, batch: Batch) -> Tensor:
        return -scores.logprobs.detach().exp() * scores.logprobs

It returns one value a target token `[N]` (or, with `level="sequence"`, one a sequence `[S]`; with `level="group"`,
one a group `[G]`), and may return `(values, metrics)`, where each metric is `[N]` or `[S]` and is averaged for the log.
It never averages its loss itself: the reduction does, over the whole optimiser step.
"""

import inspect
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import Need, TokenScores
from posttrain.errors import UserError, nearest
from posttrain.objectives.embedding_noise import EmbeddingNoise
from posttrain.objectives.reduction import TOKEN_MEAN, Gather, Level, Measure, Reduction, alone
from posttrain.registry import Registry

TermLoss = Tensor | tuple[Tensor, dict[str, Tensor]]


class Scorer(Protocol):
    """What objectives know of a policy (the objective that changes the forward pass asks for more by its own type)."""

    def scores(self, batch: Batch, needs: tuple[Need, ...] = ()) -> TokenScores:
        """Scores of the target tokens, with graph."""
        ...


Forward = Callable[[Any, Batch, tuple[Need, ...]], TokenScores]
"""How scores come about where that is not `policy.scores(batch, needs)`: mixed embeddings, perturbed weights ..."""


@dataclass(frozen=True)
class Loss:
    """`value`: this micro-batch's share of the step's loss. `metrics`: name -> (sum, count), to be added up over
    micro-batches and ranks. `records`: per-sequence values `[S]` for whoever keeps a history by sample id."""

    value: Tensor
    metrics: Mapping[str, tuple[float, float]]
    records: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One loss with its reduction, its share of the tokens and its weight in the sum.

    `origins`: only targets of these origins count (None: all). `weight_column`: a column that says how much each of
    them counts, in the numerator and in the denominator. `weight`: a factor, or a function of the step's progress in
    [0, 1].
    """

    name: str
    function: Callable[[TokenScores, Batch], TermLoss]
    needs: tuple[Need, ...] = ()
    reduction: Reduction = TOKEN_MEAN
    level: Level = "token"
    origins: frozenset[Origin] | None = None
    weight_column: str | None = None
    weight: float | Callable[[float], float] = 1.0
    forward: Forward | None = None

    def __post_init__(self) -> None:
        self.reduction.check_level(self.level)

    def measure(self, sequence: Sequence) -> Measure:
        """`[T]`: how much each token of a sequence counts in this term.

        Raises `UserError` for a weight column that is missing, negative or not finite.
        """
        chosen = sequence.target
        if self.origins is not None:
            chosen = chosen & np.isin(sequence.origin, [int(origin) for origin in self.origins])
        measure = chosen.astype(np.float64)
        if self.weight_column is not None:
            measure[chosen] = self._weights(sequence)[chosen]
            if not (np.isfinite(measure).all() and (measure >= 0).all()):
                raise UserError(
                    f"objective '{self.name}': weight column '{self.weight_column}' of sample {sequence.sample_id} has "
                    "a weight that is negative or not finite; weights count tokens, so they must be 0 or more"
                )
        return measure

    def _weights(self, sequence: Sequence) -> Measure:
        name = str(self.weight_column)
        if name not in sequence.columns:
            raise UserError(
                f"objective '{self.name}': sample {sequence.sample_id} has no weight column '{name}': "
                f"{nearest(name, sequence.columns)}"
            )
        return sequence.columns[name].astype(np.float64)


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

    def coefficients(self, sequences: List[Sequence], gather: Gather = alone) -> list[dict[str, Measure]]:
        """For each sequence of this rank's share of the step: what each term's reduction gives its tokens.

        Raises `UserError` when no token of the whole step counts in any term: such a step would train nothing.
        """
        rows: list[dict[str, Measure]] = [{} for _ in sequences]
        for key, term in self._keyed():
            measures = [term.measure(sequence) for sequence in sequences]
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
        metrics: dict[str, tuple[float, float]] = {}
        scored: dict[Forward | None, TokenScores] = {}
        progress = batch.step / max(1, batch.total_steps)
        for key, term in self._keyed():
            if term.forward not in scored:
                scored[term.forward] = self._forward(policy, batch, term.forward)
            result = term.function(scored[term.forward], batch)
            losses, extra = result if isinstance(result, tuple) else (result, {})
            coefficients = batch.coefficients[key]
            if losses.shape != coefficients.shape:
                raise ValueError(f"objective '{term.name}' gave {tuple(losses.shape)}, not {tuple(coefficients.shape)}")
            share = (coefficients * losses.float()).sum()
            value = value + (term.weight(progress) if callable(term.weight) else term.weight) * share
            label = self._label(key, term)
            if label:
                metrics[f"{label}loss"] = (float(share.detach()), 0.0)
            metrics |= {label + name: _sum_and_count(found, coefficients, batch) for name, found in extra.items()}
        logprobs = scored[None].logprobs.detach() if None in scored else None
        if logprobs is not None:
            metrics["nll"] = (float(-logprobs.sum()), float(len(logprobs)))
        return Loss(value, metrics)

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


def _scaled(weight: float | Callable[[float], float], factor: float) -> float | Callable[[float], float]:
    return (lambda progress: factor * weight(progress)) if callable(weight) else factor * weight


def _sum_and_count(values: Tensor, coefficients: Tensor, batch: Batch) -> tuple[float, float]:
    """Metrics of tokens (sequences) that the term does not count are left out of its averages."""
    counted = coefficients != 0
    if len(counted) == len(batch.tokens) != len(values) == batch.sequences:
        counted = batch.sum_by_sequence(counted.float()) > 0
    kept = values.detach()[counted] if len(values) == len(counted) else values.detach()
    return float(kept.float().sum()), float(kept.numel())


@dataclass(frozen=True)
class _Declaration:
    needs: tuple[Need, ...] | Callable[..., tuple[Need, ...]]
    reduction: Reduction
    level: Level
    forward: Forward | None


objectives: Registry[Callable[..., TermLoss]] = Registry("objective")
"""Loss functions by the name that a recipe gives them."""
_declarations: dict[str, _Declaration] = {}


def objective(
    name: str,
    *,
    needs: tuple[Need, ...] | Callable[..., tuple[Need, ...]] = (),
    reduction: Reduction = TOKEN_MEAN,
    level: Level = "token",
    forward: Forward | None = None,
) -> Callable[[Callable[..., TermLoss]], Callable[..., TermLoss]]:
    """Decorator: a recipe's `objective: name` is this loss.

    `needs`: the scores it reads beside `logprobs`, or a function of its options that says so. `reduction`: its default,
    which a recipe may change.
    """

    def declare(function: Callable[..., TermLoss]) -> Callable[..., TermLoss]:
        taken = set(inspect.signature(function).parameters) & set(_COMMON)
        if taken:
            raise TypeError(f"objective '{name}': every term has {sorted(taken)} already; call its option otherwise")
        _declarations[name] = _Declaration(needs, reduction, level, forward)
        return objectives.register(name)(function)

    return declare


_COMMON = ("weight", "reduction", "origins", "weight_column", "embedding_noise")


def build_objective(spec: str | Mapping[str, Any] | List[str | Mapping[str, Any]]) -> Objective:
    """What a recipe says of its objective: a name, `{name: ..., option: value}`, or a list of such terms to add up.

    Besides its own options every term takes `weight` (a factor), `reduction` (`tokens`, `sequences`, `groups` or
    `{constant: length}`), `origins` (a list such as `[demonstration]`), `weight_column`, and `embedding_noise` (the α
    of NEFTune: the term reads scores under noise; see `EmbeddingNoise`).
    """
    if isinstance(spec, (str, Mapping)):
        return Objective(_build_term({"name": spec} if isinstance(spec, str) else spec))
    if not spec:
        raise UserError("the objective is an empty list; give at least one term, for example 'nll'")
    return Objective(*(_build_term({"name": term} if isinstance(term, str) else term) for term in spec))


def _build_term(spec: Mapping[str, Any]) -> Term:
    common = {key: spec[key] for key in _COMMON if key in spec}
    name, options = objectives.options({key: value for key, value in spec.items() if key not in _COMMON})
    declared = _declarations[name]
    function = objectives[name]
    needs = declared.needs(**options) if callable(declared.needs) else declared.needs
    weight = common.get("weight", 1.0)
    if not isinstance(weight, (int, float)) or isinstance(weight, bool):
        raise UserError(f"objective '{name}': 'weight' must be a number, found {weight!r}")
    return Term(
        name=name,
        function=lambda scores, batch: function(scores, batch, **options),
        needs=needs,
        reduction=_reduction(name, common["reduction"]) if "reduction" in common else declared.reduction,
        level=declared.level,
        origins=_origins(name, common["origins"]) if common.get("origins") is not None else None,
        weight_column=common.get("weight_column"),
        weight=float(weight),
        forward=_forward(name, declared.forward, common.get("embedding_noise")),
    )


def _forward(name: str, own: Forward | None, noise: Any) -> Forward | None:
    if noise is None:
        return own
    if not isinstance(noise, (int, float)) or isinstance(noise, bool) or not 0 <= noise < float("inf"):
        raise UserError(f"objective '{name}': 'embedding_noise' must be a number, 0 or more, found {noise!r}")
    if own is not None:
        raise UserError(f"objective '{name}' has a forward pass of its own; leave 'embedding_noise' out")
    return EmbeddingNoise(float(noise)) if noise else None


def _reduction(name: str, spec: Any) -> Reduction:
    if isinstance(spec, Mapping) and list(spec) == ["constant"]:
        length = spec["constant"]
        if not isinstance(length, (int, float)) or isinstance(length, bool):
            raise UserError(f"objective '{name}': reduction constant needs a length in tokens, found {length!r}")
        return Reduction("constant", float(length))
    if spec in ("tokens", "sequences", "groups"):
        return Reduction(spec)
    raise UserError(
        f"objective '{name}': reduction {spec!r} is none of tokens, sequences, groups, {{constant: length}}"
    )


def _origins(name: str, given: Any) -> frozenset[Origin]:
    known = {origin.name.lower(): origin for origin in Origin}
    items = [str(item) for item in given] if isinstance(given, list) else [str(given)]
    if not items:
        raise UserError(
            f"objective '{name}': 'origins' is an empty list; leave it out to count targets of every origin"
        )
    for item in items:
        if item not in known:
            raise UserError(f"objective '{name}': unknown origin '{item}': {nearest(item, known)}")
    return frozenset(known[item] for item in items)
