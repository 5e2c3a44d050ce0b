"""Several sources at once: each step has what all of them give."""

from collections.abc import Sequence as List
from typing import Any

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.schedules import Schedule, settled
from posttrain.sources.source import Source


class Mixture:
    """The sequences of some sources, one behind the other. Losses tell them apart by the origin of their tokens.

    `weights`: what the sources' terms weigh; one that is known to weigh nothing in a step is not asked in it.
    """

    def __init__(self, sources: List[Source], weights: List[float | Schedule] | None = None) -> None:
        self.sources = sources
        self.weights = weights or [1.0] * len(sources)

    def next(self, step: Step) -> list[Sequence]:
        """This rank's share of a step."""
        asked = [s for s, weight in zip(self.sources, self.weights, strict=True) if settled(weight, step) != 0]
        return [sequence for source in asked for sequence in source.next(step)]

    def another(self, step: Step) -> list[Sequence]:
        """A second batch of the last source."""
        return self.sources[-1].another(step)

    def state(self) -> dict[str, Any]:
        """Those of all sources."""
        return {"sources": [source.state() for source in self.sources]}

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from there."""
        for place, source in enumerate(self.sources):
            source.restore([state["sources"][place] for state in states])
