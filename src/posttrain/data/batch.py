"""`Batch`: what the policy reads (`rows`) and what objectives see (flat target tokens)."""

import hashlib
import math
from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from posttrain.data.prefixes import Continued, Prefixes, share_prefixes
from posttrain.data.sequence import Sequence
from posttrain.data.step import Step

Layout = Literal["padded", "packed"]


@dataclass(frozen=True)
class Rows:
    """What the model's forward takes.

    `input_ids[R, L]`, and `position_ids[R, L]` where positions restart inside a row. "padded": one sequence a row,
    padded on the right, so that a causal model needs no attention mask. "packed": all sequences in one row;
    transformers reads the block-diagonal attention from the positions. `continued`: padded rows that go on from shared
    prefixes, and have only what comes behind those.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    extras: Mapping[str, Any] = field(default_factory=dict)
    continued: Continued | None = None


@dataclass(frozen=True)
class Batch:
    """`N` target tokens of `S` sequences in `G` groups; no padding, no shift by one.

    - `tokens[N]`, `position[N]` (index in its sequence), `origin[N]`, every column `[N]`; `sequence[N]` -> 0..S-1.
    - `scalars`: `[S]`. Columns and scalars are 0 where a sequence lacks them (what a term counts has what it reads).
    - `group[S]` -> 0..G-1; `sample_ids`: `S` names.
    - `where[N]`: index into the `R*L` flattened positions of the state that predicts the token.
    - `coefficients`: what each term's reduction gives each token `[N]`, sequence `[S]` or group `[G]`, already divided
      by the denominator of the whole optimiser step (see `objectives.reduction`).
    - `step`: the optimiser step that it is a part of, for losses with a schedule and losses that draw samples.
    - `key[N]`: a number that names the token (its sample, group, sequence of tokens and position), so that draws do not
      depend on the batch, and differ between the rollouts of one prompt.
    """

    rows: Rows
    tokens: Tensor
    sequence: Tensor
    position: Tensor
    origin: Tensor
    where: Tensor
    key: Tensor
    columns: Mapping[str, Tensor]
    scalars: Mapping[str, Tensor]
    group: Tensor
    groups: int
    sample_ids: tuple[str, ...]
    coefficients: Mapping[str, Tensor] = field(default_factory=dict)
    step: Step = field(default_factory=Step)

    @property
    def sequences(self) -> int:
        """S, the number of sequences."""
        return len(self.sample_ids)

    @cached_property
    def temperature(self) -> Tensor | None:
        """`[N]`, the temperature that each token was drawn at (the scalar of that name; 1 for sequences without), or
        None where all are at 1."""
        if "temperature" not in self.scalars:
            return None
        values = self.scalars["temperature"]
        return torch.where(values > 0, values, 1.0)[self.sequence]

    def column(self, name: str) -> Tensor:
        """The column `[N]`; raises `KeyError` that lists the columns there are."""
        return _named(self.columns, name, "column")

    def scalar(self, name: str) -> Tensor:
        """The scalar `[S]`; raises `KeyError` that lists the scalars there are."""
        return _named(self.scalars, name, "scalar")

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """`[N]` -> `[S]`: the sum over each sequence's target tokens."""
        return torch.zeros(self.sequences, dtype=values.dtype, device=values.device).index_add(0, self.sequence, values)

    def mean_by_sequence(self, values: Tensor) -> Tensor:
        """`[N]` -> `[S]`: the mean over each sequence's target tokens; 0 where a sequence has none."""
        counts = self.sum_by_sequence(torch.ones_like(values))
        return self.sum_by_sequence(values) / counts.clamp(min=1)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, Rows):
                return replace(value, **{f.name: move(getattr(value, f.name)) for f in fields(value)})
            if isinstance(value, Continued):
                return replace(value, row=move(value.row), length=move(value.length))
            if isinstance(value, Mapping):
                return {key: move(item) for key, item in value.items()}
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


def _named(values: Mapping[str, Tensor], name: str, kind: str) -> Tensor:
    if name not in values:
        raise KeyError(f"the batch has no {kind} '{name}' (there are: {', '.join(sorted(values)) or 'none'})")
    return values[name]


def collate(
    sequences: List[Sequence], *, pad_id: int = 0, layout: Layout = "padded", prefixes: Prefixes | None = None
) -> Batch:
    """Tensors of some sequences. Columns and scalars are those that any sequence has; the others have 0 there.

    With `prefixes` (of all their groups; layout "padded") the rows have only what comes behind those.
    """
    if not sequences:
        raise ValueError("a batch needs at least one sequence")
    starts = _row_starts(sequences, layout) if prefixes is None else _rest_starts(sequences, prefixes)
    targets = [np.flatnonzero(sequence.target) for sequence in sequences]
    columns = sorted({name for sequence in sequences for name in sequence.columns})
    scalars = sorted({name for sequence in sequences for name in sequence.scalars})
    group, groups = _group_indices(sequences)

    def flat(arrays: List[npt.NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate([array[t] for array, t in zip(arrays, targets, strict=True)]))

    def column(name: str) -> Tensor:
        return flat([s.columns[name] if name in s.columns else np.zeros(len(s), np.float32) for s in sequences]).float()

    return Batch(
        rows=_rows(sequences, starts, pad_id, layout) if prefixes is None else _rests(sequences, prefixes, pad_id),
        tokens=flat([sequence.tokens for sequence in sequences]).long(),
        sequence=torch.from_numpy(np.repeat(np.arange(len(sequences)), [len(t) for t in targets])),
        position=torch.from_numpy(np.concatenate(targets)),
        origin=flat([sequence.origin for sequence in sequences]),
        where=torch.from_numpy(np.concatenate([start + t - 1 for start, t in zip(starts, targets, strict=True)])),
        key=torch.from_numpy(np.concatenate([_keys(s, t) for s, t in zip(sequences, targets, strict=True)])),
        columns={name: column(name) for name in columns},
        scalars={name: torch.tensor([float(s.scalars.get(name, 0)) for s in sequences]) for name in scalars},
        group=group,
        groups=groups,
        sample_ids=tuple(sequence.sample_id for sequence in sequences),
    )


def _keys(sequence: Sequence, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    content = f"{sequence.sample_id}/{sequence.group}/".encode() + sequence.tokens.tobytes()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return np.int64(int.from_bytes(digest, "little") >> 20 << 19) + positions


def _row_starts(sequences: List[Sequence], layout: Layout) -> list[int]:
    if layout == "padded":
        width = max(len(sequence) for sequence in sequences)
        return [row * width for row in range(len(sequences))]
    return [int(start) for start in np.cumsum([0] + [len(sequence) for sequence in sequences[:-1]])]


def _rest_starts(sequences: List[Sequence], prefixes: Prefixes) -> list[int]:
    """Where the sequences would begin in the flattened rows if those went back that far."""
    width = max(prefixes.rest(sequence) for sequence in sequences)
    return [row * width - prefixes.length(sequence) for row, sequence in enumerate(sequences)]


def _rests(sequences: List[Sequence], prefixes: Prefixes, pad_id: int) -> Rows:
    length = torch.tensor([prefixes.length(sequence) for sequence in sequences])
    ids = np.full((len(sequences), max(prefixes.rest(sequence) for sequence in sequences)), pad_id, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : prefixes.rest(sequence)] = sequence.tokens[prefixes.length(sequence) : -1]
    continued = Continued(prefixes, torch.tensor([prefixes.places[s.group][0] for s in sequences]), length)
    return Rows(torch.from_numpy(ids), length[:, None] + torch.arange(ids.shape[1]), continued=continued)


def _rows(sequences: List[Sequence], starts: List[int], pad_id: int, layout: Layout) -> Rows:
    lengths = [len(sequence) for sequence in sequences]
    shape = (len(sequences), max(lengths)) if layout == "padded" else (1, sum(lengths))
    ids = np.full(shape[0] * shape[1], pad_id, dtype=np.int64)
    for start, sequence in zip(starts, sequences, strict=True):
        ids[start : start + len(sequence)] = sequence.tokens if sequence.inputs is None else sequence.inputs
    positions = None
    if layout == "packed":
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).reshape(shape)
    return Rows(torch.from_numpy(ids).reshape(shape), positions, _extras(sequences))


def _extras(sequences: List[Sequence]) -> dict[str, Any]:
    """Multimodal inputs are concatenated along their first dimension, as transformers' processors do."""
    names = {name for sequence in sequences for name in sequence.extras}
    return {
        name: torch.cat([torch.as_tensor(s.extras[name]) for s in sequences if name in s.extras])
        for name in sorted(names)
    }


def _group_indices(sequences: List[Sequence]) -> tuple[Tensor, int]:
    index: dict[str, int] = {}
    keys = [sequence.group or f"\0{row}" for row, sequence in enumerate(sequences)]
    group = [index.setdefault(key, len(index)) for key in keys]
    return torch.tensor(group), len(index)


def cut_sharing(
    sequences: List[Sequence], token_budget: int, *, pad_id: int = 0, keep_groups: bool = False
) -> list[tuple[Prefixes | None, list[list[int]]]]:
    """Micro-batches (indices) with the prefixes that they go on from, which are read once for all of them.

    Half of the budget is for prefixes: what a backward pass needs of them is kept until the last one has gone on.
    """
    found = []
    for prefixes, rows in share_prefixes(sequences, token_budget // 2, pad_id):
        budget = token_budget if prefixes is None else token_budget // 2
        chosen = [sequences[row] for row in rows]
        parts = micro_batches(chosen, max(1, budget), keep_groups=keep_groups, prefixes=prefixes)
        found.append((prefixes, [[rows[index] for index in part] for part in parts]))
    return found


def micro_batches(
    sequences: List[Sequence],
    token_budget: int,
    *,
    layout: Layout = "padded",
    keep_groups: bool = False,
    prefixes: Prefixes | None = None,
) -> list[list[int]]:
    """Cut a step into micro-batches of at most `token_budget` tokens, padding included; returns indices.

    Sequences of like length go together, and the cut is the cheapest there is: what it computes is the tokens with
    their padding, and a 32nd of the budget for each micro-batch (calls, kernel launches, one more sum of gradients).
    `keep_groups` never cuts a group (for losses over pairs or groups). A single item above the budget is a micro-batch
    of its own. The largest come first, so that the memory they need is there for the others. With `prefixes` only what
    comes behind those counts.
    """
    lengths = [len(sequence) if prefixes is None else prefixes.rest(sequence) for sequence in sequences]
    items: dict[str, list[int]] = {}
    for row, sequence in enumerate(sequences):
        key = sequence.group if keep_groups and sequence.group else f"\0{row}"
        items.setdefault(key, []).append(row)
    widest = [(max(lengths[row] for row in rows), rows) for rows in items.values()]
    ordered = sorted(widest, key=lambda item: (item[0], item[1][0]))
    if layout == "padded":
        sizes = [(width, len(rows)) for width, rows in ordered]
    else:
        sizes = [(1, sum(lengths[row] for row in rows)) for _, rows in ordered]
    cuts = _cheapest_cuts(sizes, token_budget, token_budget / 32)
    cuts.sort(key=lambda cut: -_area(sizes[slice(*cut)]))
    return [[row for _, rows in ordered[start:end] for row in rows] for start, end in cuts]


def _area(sizes: List[tuple[int, int]]) -> int:
    """Tokens of some items in one micro-batch, padding included; the last is the widest."""
    return sizes[-1][0] * sum(rows for _, rows in sizes)


def _cheapest_cuts(sizes: List[tuple[int, int]], budget: int, start_cost: float) -> list[tuple[int, int]]:
    """Cut items of (width, rows), sorted by width, into runs whose widest width times rows is within the budget, at the
    least sum of such products and start costs. An item above the budget is a run of its own.
    """
    costs, starts = [0.0], [0]
    for end in range(1, len(sizes) + 1):
        width, rows = sizes[end - 1][0], 0
        costs.append(math.inf)
        starts.append(end - 1)
        for start in range(end - 1, -1, -1):
            rows += sizes[start][1]
            if width * rows > budget and start < end - 1:
                break
            cost = costs[start] + width * rows + start_cost
            if cost < costs[end]:
                costs[end], starts[end] = cost, start
    runs, end = [], len(sizes)
    while end:
        runs.append((starts[end], end))
        end = starts[end]
    return runs
