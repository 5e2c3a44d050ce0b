"""Where a step's sequences come from."""

from typing import Any, Protocol

from posttrain.data import Sequence
from posttrain.data.step import Step


class Source(Protocol):
    """Gives the sequences of each optimiser step: demonstrations, rollouts, prefixes, hints, mixtures of sources."""

    def next(self, step: Step) -> list[Sequence]:
        """This rank's share of a step; all ranks together see the same sequences, however many there are."""
        ...

    def another(self, step: Step) -> list[Sequence]:
        """This rank's share of a second batch of the step's size, drawn on its own: for losses that read two."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep so that the next steps are the same: plain values and tensors, of this rank."""
        ...

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from the states of all ranks, in their order: perhaps on another number of ranks."""
        ...
