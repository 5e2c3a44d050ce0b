"""Demonstrations: a fixed data set in an order that is a function of the seed."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from posttrain.data import Sequence
from posttrain.policy import Policy


class Dataset(Protocol):
    """An indexable collection of sequences (`data.encoding.EncodedDataset`, or a list)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sequence: ...


class Demonstrations:
    """`batch_size` sequences a step, `epochs` passes over the data, every pass in a new order.

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
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data, self.batch_size, self.seed, self.shuffle = data, batch_size, seed, shuffle
        self.rank, self.ranks = rank, ranks
        self.total = max(1, round(epochs * len(data)))
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    @property
    def steps(self) -> int:
        """How many steps the epochs take."""
        return -(-self.total // self.batch_size)

    def indices(self, step: int) -> list[int]:
        """Rows of the whole step, all ranks together."""
        start = step * self.batch_size
        places = range(start, min(start + self.batch_size, max(self.total, start + 1)))
        return [int(self._permutation(place // len(self.data))[place % len(self.data)]) for place in places]

    def next(self, step: int, policy: Policy) -> list[Sequence]:
        """This rank's share of a step."""
        return [self.data[index] for index in self.indices(step)[self.rank :: self.ranks]]

    def state(self) -> dict[str, Any]:
        """Nothing: the order is a function of the step."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(len(self.data)) if self.shuffle else np.arange(len(self.data))
            self._order = (epoch, order)
        return self._order[1]
