"""Demonstrations: a fixed data set in an order that is a function of the seed."""

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.sources.order import Order

_ANOTHER = 1
"""Keeps the draws of `another` apart from those of the order."""


class Dataset(Protocol):
    """An indexable collection of sequences (`data.encoding.EncodedDataset`, or a list)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sequence: ...


class Demonstrations:
    """`batch_size` items a step, `epochs` passes over the data, every pass in a new order.

    An item is a sequence, or with `pairs` the two sides of a preference pair: rows 2i and 2i + 1 of the data. They stay
    on one rank, and share a group of their own, although the same pair may come twice in a step that begins an epoch.
    The order is a function of (seed, epoch) alone, so there is nothing to save: a resumed run and any number of ranks
    see the same sequences at the same step. The last step of the last epoch may be smaller; none is dropped.
    """

    def __init__(
        self,
        data: Dataset,
        batch_size: int,
        seed: int,
        *,
        epochs: float = 1.0,
        shuffle: bool = True,
        pairs: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.pairs, self.rank, self.ranks = pairs, rank, ranks
        self.items = len(data) // 2 if pairs else len(data)
        self.total = max(1, round(epochs * self.items))
        self._order = Order(self.items, seed, shuffle=shuffle)

    @property
    def steps(self) -> int:
        """How many steps the epochs take."""
        return -(-self.total // self.batch_size)

    def indices(self, step: int) -> list[int]:
        """Items of the whole step, all ranks together."""
        start = step * self.batch_size
        places = range(start, min(start + self.batch_size, max(self.total, start + 1)))
        return [self._order[place] for place in places]

    def next(self, step: Step) -> list[Sequence]:
        """This rank's share of a step."""
        return self._share(self.indices(step.index))

    def another(self, step: Step) -> list[Sequence]:
        """This rank's share of as many items, drawn without replacement and independently of the step's own."""
        rng = np.random.default_rng([self.seed, step.index, _ANOTHER])
        return self._share([int(item) for item in rng.permutation(self.items)[: self.batch_size]])

    def _share(self, items: list[int]) -> list[Sequence]:
        drawn = items[self.rank :: self.ranks]
        if not self.pairs:
            return [self.data[index] for index in drawn]
        return [side for place, pair in enumerate(drawn) for side in self._sides(pair, place)]

    def _sides(self, pair: int, place: int) -> list[Sequence]:
        sides = self.data[2 * pair], self.data[2 * pair + 1]
        return [replace(side, group=f"{side.group}/{place * self.ranks + self.rank}") for side in sides]

    def state(self) -> dict[str, Any]:
        """Nothing: the order is a function of the step."""
        return {}

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Nothing to restore."""
