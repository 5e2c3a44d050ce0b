"""Where a step's sequences come from."""

from typing import Any, Protocol

from posttrain.data import Sequence
from posttrain.policy import Policy


class Source(Protocol):
    """Gives the sequences of each optimiser step: demonstrations, rollouts, prefixes, hints, mixtures of sources."""

    def next(self, step: int, policy: Policy) -> list[Sequence]:
        """This rank's share of step `step` (0-based); all ranks together see the same sequences, however many."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep so that the next steps are the same; JSON-able, and the same on every rank."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, perhaps on another number of ranks."""
        ...
