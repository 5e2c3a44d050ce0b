"""Beginnings that the sequences of a group share: a model reads them once, and each sequence goes on from there."""

from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from posttrain.data.sequence import Sequence

WORTH_SHARING = 1 / 8
"""The share of a step's tokens that must be saved to pay for a pass more."""


class Reading(Protocol):
    """What a model has made of prefixes."""

    def backward(self) -> None:
        """Pass on the gradients that have come together at it."""
        ...


@dataclass(frozen=True, eq=False)
class Prefixes:
    """`G` beginnings, read once for all micro-batches of the sequences that go on from them.

    - `input_ids[G, P]`, padded on the right.
    - `places`: group -> its row, and how many of the row's tokens its sequences share.
    - `readings`: what models made of them, by the reader.
    """

    input_ids: Tensor
    places: dict[str, tuple[int, int]]
    readings: dict[object, Reading] = field(default_factory=dict)

    def length(self, sequence: Sequence) -> int:
        """How many tokens of a sequence are read here."""
        return self.places[sequence.group][1]

    def rest(self, sequence: Sequence) -> int:
        """How many tokens of a sequence are left to read: the last one predicts nothing."""
        return len(sequence) - 1 - self.length(sequence)

    def finish(self) -> None:
        """Pass on the gradients of all sequences that went on from here, after their own backward passes, and forget
        what was read."""
        for reading in self.readings.values():
            reading.backward()
        self.readings.clear()


@dataclass(frozen=True)
class Continued:
    """The row `[R]` of `prefixes` that each of `R` rows goes on from, and behind how many `[R]` of its tokens."""

    prefixes: Prefixes
    row: Tensor
    length: Tensor


def share_prefixes(
    sequences: List[Sequence], token_budget: int, pad_id: int = 0
) -> list[tuple[Prefixes | None, list[int]]]:
    """Parts of a step (indices of whole groups), each with the prefixes that its sequences go on from, or None.

    A part has as many groups as have `token_budget` tokens of prefixes, padding included, but at least one. Where too
    little would be saved, the step is one part without prefixes.
    """
    groups: dict[str, list[int]] = {}
    for row, sequence in enumerate(sequences):
        groups.setdefault(sequence.group or f"\0{row}", []).append(row)
    shared = {group: _shared([sequences[row] for row in rows]) for group, rows in groups.items()}
    saved = sum((len(groups[group]) - 1) * length for group, length in shared.items())
    if saved <= WORTH_SHARING * sum(map(len, sequences)):
        return [(None, list(range(len(sequences))))]
    parts: list[list[str]] = []
    for group in sorted((group for group in groups if shared[group]), key=lambda group: -shared[group]):
        if not parts or (len(parts[-1]) + 1) * shared[parts[-1][0]] > token_budget:
            parts.append([])
        parts[-1].append(group)
    found: list[tuple[Prefixes | None, list[int]]] = []
    for part in parts:
        prefixes = _prefixes({group: sequences[groups[group][0]].tokens[: shared[group]] for group in part}, pad_id)
        found.append((prefixes, [row for group in part for row in groups[group]]))
    alone = [row for group, rows in groups.items() if not shared[group] for row in rows]
    return [*found, (None, alone)] if alone else found


def _shared(sequences: List[Sequence]) -> int:
    """How many of their first tokens are the same, short of the one that predicts the first target: it stays with the
    target, so that no state of a prefix is asked for."""
    if len(sequences) == 1 or any(sequence.inputs is not None or sequence.extras for sequence in sequences):
        return 0
    length = max(0, min(_first_target(sequence) for sequence in sequences) - 1)
    for other in sequences[1:]:
        differing = np.flatnonzero(sequences[0].tokens[:length] != other.tokens[:length])
        length = int(differing[0]) if len(differing) else length
    return length


def _first_target(sequence: Sequence) -> int:
    return int(sequence.target.argmax()) if sequence.target.any() else len(sequence) - 1


def _prefixes(tokens: dict[str, npt.NDArray[np.int32]], pad_id: int) -> Prefixes:
    ids = np.full((len(tokens), max(map(len, tokens.values()))), pad_id, dtype=np.int64)
    for row, prefix in enumerate(tokens.values()):
        ids[row, : len(prefix)] = prefix
    places = {group: (row, len(prefix)) for row, (group, prefix) in enumerate(tokens.items())}
    return Prefixes(torch.from_numpy(ids), places)
