"""The checked inputs of a train stage."""

from typing import Any, Protocol

from posttrain.data import Sequence
from posttrain.policy import Policy
from posttrain.sources import Source

Numbers = dict[str, int | float | str]


class Supply(Protocol):
    """The checked inputs of a train stage, from which its source is made."""

    steps: int
    """Optimiser steps, where the stage does not say how many."""
    steps_per_epoch: float

    def numbers(self) -> tuple[Numbers, tuple[str, ...]]:
        """What a plan shows, and what the user should know."""
        ...

    def cache_reference(self, reference: Policy) -> None:
        """Score the data with the reference once; see `Train.cache_reference`."""
        ...

    def source(self, policy: Policy) -> Source:
        """Where the sequences of each step come from."""
        ...

    def probe(self, count: int) -> list[Sequence]:
        """Some sequences with targets, to compare a saved model with the one that was trained."""
        ...

    def summary(self) -> dict[str, Any]:
        """What the stage's summary says of its inputs; writes what was refused into the run folder."""
        ...
