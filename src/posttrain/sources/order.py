"""The order in which a data set is gone through: a function of the seed, so that there is nothing to save."""

import numpy as np
import numpy.typing as npt


class Order:
    """Item number by place: pass after pass over `count` items, each shuffled anew (none is, with `shuffle` off)."""

    def __init__(self, count: int, seed: int, *, shuffle: bool = True) -> None:
        self.count, self.seed, self.shuffle = count, seed, shuffle
        self._pass: tuple[int, npt.NDArray[np.int64]] | None = None

    def __getitem__(self, place: int) -> int:
        epoch, index = divmod(place, self.count)
        if self._pass is None or self._pass[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._pass = (epoch, rng.permutation(self.count) if self.shuffle else np.arange(self.count))
        return int(self._pass[1][index])
