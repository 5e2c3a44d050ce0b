"""Demonstrations: every row once an epoch, in an order that depends on nothing but the seed."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import random_step

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.sources import Demonstrations

DATA = random_step(0, [5] * 12)


def order(source: Demonstrations) -> list[str]:
    return [sequence.sample_id for step in range(source.steps) for sequence in source.next(Step(step))]


@given(st.integers(1, 12), st.integers(1, 15), st.integers(1, 3), st.integers(0, 2**32))
def test_every_row_comes_once_an_epoch(rows: int, batch_size: int, epochs: int, seed: int) -> None:
    names = order(Demonstrations(DATA[:rows], batch_size, seed, epochs=epochs))
    for epoch in range(epochs):
        assert Counter(names[epoch * rows : (epoch + 1) * rows]) == Counter(s.sample_id for s in DATA[:rows])
    assert len(names) == rows * epochs


@given(st.integers(1, 12), st.integers(1, 15), st.floats(0.05, 3), st.integers(1, 4))
def test_ranks_share_the_same_steps(rows: int, batch_size: int, epochs: float, ranks: int) -> None:
    alone = Demonstrations(DATA[:rows], batch_size, 3, epochs=epochs)
    shares = [Demonstrations(DATA[:rows], batch_size, 3, epochs=epochs, rank=r, ranks=ranks) for r in range(ranks)]
    for step in range(alone.steps):
        together = [sequence.sample_id for share in shares for sequence in share.next(Step(step))]
        assert Counter(together) == Counter(sequence.sample_id for sequence in alone.next(Step(step)))


def paired(pairs: int) -> list[Sequence]:
    return [replace(s, sample_id=f"pair{row // 2}", group=f"pair{row // 2}") for row, s in enumerate(DATA[: 2 * pairs])]


@given(st.integers(1, 6), st.integers(1, 7), st.floats(0.1, 3), st.integers(1, 4))
def test_both_sides_of_a_pair_come_in_one_step_on_one_rank(
    pairs: int, batch_size: int, epochs: float, ranks: int
) -> None:
    data = paired(pairs)
    shares = [Demonstrations(data, batch_size, 3, epochs=epochs, pairs=True, rank=r, ranks=ranks) for r in range(ranks)]
    drawn: Counter[str] = Counter()
    for step in range(shares[0].steps):
        groups: list[str] = []
        for share in shares:
            rows = share.next(Step(step))
            assert [row.sample_id for row in rows[::2]] == [row.sample_id for row in rows[1::2]]
            assert [row.group for row in rows[::2]] == [row.group for row in rows[1::2]]
            groups += [row.group for row in rows[::2]]
            drawn.update(row.sample_id for row in rows[::2])
        assert len(set(groups)) == len(groups) <= batch_size
    assert sum(drawn.values()) == max(1, round(epochs * pairs))
    assert max(drawn.values()) - min(drawn[f"pair{pair}"] for pair in range(pairs)) <= 1


def test_the_sides_of_a_pair_stay_in_their_order() -> None:
    (first, second) = Demonstrations(paired(1), 4, seed=0, pairs=True).next(Step())
    assert np.array_equal(first.tokens, DATA[0].tokens)
    assert np.array_equal(second.tokens, DATA[1].tokens)


def test_every_epoch_has_an_order_of_its_own() -> None:
    names = order(Demonstrations(DATA, 4, seed=0, epochs=2))
    assert names[:12] != names[12:]
    assert names == order(Demonstrations(DATA, 4, seed=0, epochs=2))
    assert names != order(Demonstrations(DATA, 4, seed=1, epochs=2))


def test_the_order_can_be_that_of_the_file() -> None:
    assert order(Demonstrations(DATA, 5, seed=0, shuffle=False)) == [sequence.sample_id for sequence in DATA]


def test_the_last_step_is_smaller_rather_than_filled_or_dropped() -> None:
    source = Demonstrations(DATA, 5, seed=0)
    assert [len(source.next(Step(step))) for step in range(source.steps)] == [5, 5, 2]


def test_batches_run_over_the_edge_of_an_epoch() -> None:
    source = Demonstrations(DATA, 5, seed=0, epochs=2)
    assert [len(source.next(Step(step))) for step in range(source.steps)] == [5, 5, 5, 5, 4]


@pytest.mark.parametrize(("epochs", "count"), [(0.5, 6), (1.25, 15), (0.01, 1)])
def test_epochs_may_be_fractions(epochs: float, count: int) -> None:
    assert len(order(Demonstrations(DATA, 4, seed=0, epochs=epochs))) == count


def test_any_step_can_be_asked_for_first() -> None:
    source = Demonstrations(DATA, 5, seed=0, epochs=3)
    forwards = [source.indices(step) for step in range(source.steps)]
    assert [Demonstrations(DATA, 5, seed=0, epochs=3).indices(step) for step in range(source.steps)] == forwards
    assert [source.indices(step) for step in reversed(range(source.steps))] == forwards[::-1]
    assert np.concatenate(forwards).max() < len(DATA)
