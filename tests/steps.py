"""Random optimiser steps, and how they are cut into ranks and micro-batches."""

import threading
from collections.abc import Callable
from collections.abc import Sequence as List
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

from posttrain.data import Origin, Sequence

Share = TypeVar("Share")
Result = TypeVar("Result")


def random_sequence(
    rng: np.random.Generator, length: int, name: str = "sample", *, trained: float = 0.6, group: str = ""
) -> Sequence:
    """Random bytes, about `trained` of them targets, demonstrated or rolled out. `weight` is set at targets only."""
    target = rng.random(length) < trained
    target[0] = False
    weight = np.where(target, rng.choice([0.0, 0.5, 1.0, 2.0], length), np.nan)
    return Sequence(
        tokens=rng.integers(0, 256, length).astype(np.int32),
        target=target,
        origin=np.where(target, rng.choice([Origin.DEMONSTRATION, Origin.ROLLOUT], length), 0).astype(np.uint8),
        sample_id=name,
        group=group,
        columns={"weight": weight.astype(np.float32)},
        scalars={"reward": float(rng.random())},
    )


def random_step(seed: int, lengths: List[int], *, trained: float = 0.6) -> list[Sequence]:
    """Sequences of these lengths, each a group of its own."""
    rng = np.random.default_rng(seed)
    return [random_sequence(rng, length, f"sample{i}", trained=trained) for i, length in enumerate(lengths)]


@st.composite
def steps(draw: st.DrawFn, longest: int = 12, most: int = 7) -> list[Sequence]:
    """A step whose sequences may be without targets, alone or in groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = st.tuples(st.integers(1, longest), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["", "a", "b"]))
    return [
        random_sequence(rng, length, f"sample{i}", trained=trained, group=group)
        for i, (length, trained, group) in enumerate(draw(st.lists(shapes, min_size=1, max_size=most)))
    ]


Cut = list[list[list[int]]]
"""Ranks of micro-batches of indices into a step."""


@st.composite
def cuts(draw: st.DrawFn, step: List[Sequence], *, keep_groups: bool, ranks: int = 3, parts: int = 3) -> Cut:
    """Any split of a step into up to `ranks` ranks of up to `parts` micro-batches; some ranks may have none."""
    ranks = draw(st.integers(1, ranks))
    place = st.tuples(st.integers(0, ranks - 1), st.integers(0, parts - 1))
    of_group: dict[str, tuple[int, int]] = {}
    cut: Cut = [[[] for _ in range(parts)] for _ in range(ranks)]
    for index, sequence in enumerate(step):
        rank, part = draw(place)
        if keep_groups and sequence.group:
            rank, part = of_group.setdefault(sequence.group, (rank, part))
        cut[rank][part].append(index)
    return [[part for part in rank if part] for rank in cut]


def on_ranks(
    shares: List[Share], work: Callable[[Share, Callable[[Any], list[Any]]], Result], timeout: float = 20
) -> list[Result]:
    """`work(share, gather)` of every rank, each in a thread of its own, where `gather` waits for all ranks."""
    slots: list[Any] = [None] * len(shares)
    barrier = threading.Barrier(len(shares), timeout=timeout)

    def run(rank: int) -> Result:
        def gather(value: Any) -> list[Any]:
            slots[rank] = value
            barrier.wait()
            values = list(slots)
            barrier.wait()
            return values

        return work(shares[rank], gather)

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(run, range(len(shares))))
