"""`Step`: what sources, transforms and losses know of an optimiser step before its first backward pass."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from posttrain.data.scores import Need, TokenScores
from posttrain.data.sequence import Sequence

Gather = Callable[[Any], list[Any]]
"""All ranks' values of an object, in rank order. Every rank must call it as often as the others."""
Score = Callable[[List[Sequence], tuple[Need, ...]], list[TokenScores]]
"""Scores of each sequence's targets without gradient, in as many micro-batches as it takes, dropout off. Every rank
must call it as often as the others; one that has nothing to score passes no sequences."""
Gradient = Callable[[Any, List[Sequence]], dict[str, Tensor]]
"""The gradient of an objective over some sequences (this rank's share), summed over ranks, by parameter name. Nothing
stays behind in `.grad`."""
Lap = Callable[[str], AbstractContextManager[Any]]
"""Times a block under a name, for the log."""
Draw = Callable[[], list[Sequence]]
"""This rank's share of a second, independently drawn batch of the step's size."""


def alone(value: Any) -> list[Any]:
    """`Gather` of a single process."""
    return [value]


def untimed(name: str) -> AbstractContextManager[Any]:
    """`Lap` of nobody who watches."""
    return nullcontext()


def _absent(*_: Any) -> Any:
    raise RuntimeError("this step has no policy to score with and no source to draw from")


@dataclass(frozen=True)
class Step:
    """Where in the run a step is, and what may be asked while it is prepared.

    - `index` of `total` (0-based), `epoch` (fractional), `seed` (another one at every step): for schedules and draws.
    - `policy`, `score`, `gather`, `gradient`, `draw`: see their types.
    - `memory`: name -> sample id -> value, what a loss's metrics were when a sample was last visited (those that it
      declares with `remember`). The same on every rank, and kept in checkpoints.
    - `report`: name -> (sum, count), what a source measures for the log; added up over ranks and averaged.
    - `measured`: name -> the newest value of every metric of the log, this step's `report` among them once the source
      is done. The same on every rank, and kept in checkpoints.
    - `lap`: times what a source does; see its type.
    - `shared`: what a loss's `prepare` leaves for its own forward passes in this step (`batch.step.shared`).
    """

    index: int = 0
    total: int = 1
    epoch: float = 0.0
    seed: int = 0
    policy: Any = None
    score: Score = _absent
    gather: Gather = alone
    gradient: Gradient = _absent
    draw: Draw = _absent
    memory: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    report: dict[str, tuple[float, float]] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    lap: Lap = untimed
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """How much of the run is behind, in [0, 1)."""
        return self.index / max(1, self.total)

    def ramped(self, peak: float, ramp: float) -> float:
        """A value that rises from 0 to `peak`: peak · index / (ramp + 1) over the first `ramp` steps, then `peak`.

        `ramp` below 1 is a share of the run; 0 is no rise.
        """
        steps = ramp * self.total if ramp < 1 else ramp
        return peak * min(1.0, self.index / (steps + 1)) if ramp else peak
