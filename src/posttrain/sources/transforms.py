"""What happens to a step's sequences between their source and the objective: corrupted inputs, token weights, subsets.

A transform is one function of a step's sequences (this rank's share) and the step:

    @transform("hide_last")
    def hide_last(sequences: List[Sequence], step: Step, *, share: float = 0.1) -> list[Sequence]: ...

It is drawn anew at every visit: its random numbers come from `step.seed` and the sequence, so that they do not depend
on ranks, and a resumed run draws the same.
"""

from collections.abc import Callable
from collections.abc import Sequence as List
from typing import Any

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.registry import Registry
from posttrain.sources.source import Source

Transform = Callable[[List[Sequence], Step], List[Sequence]]

transforms: Registry[Callable[..., List[Sequence]]] = Registry("transform")
"""Transforms by the name that a recipe gives them."""
transform = transforms.register


def build_transform(spec: str | dict[str, Any]) -> Transform:
    """The transform of a name, or of `{name: ..., option: value}`."""
    name, options = transforms.options({"name": spec} if isinstance(spec, str) else spec)
    function = transforms[name]
    return lambda sequences, step: function(sequences, step, **options)


class Transformed:
    """A source whose sequences go through some transforms, in their order."""

    def __init__(self, source: Source, chain: List[Transform]) -> None:
        self.source, self.chain = source, chain

    def next(self, step: Step) -> list[Sequence]:
        """This rank's share of a step, transformed."""
        return self._through(self.source.next(step), step)

    def another(self, step: Step) -> list[Sequence]:
        """This rank's share of a second batch, transformed likewise."""
        return self._through(self.source.another(step), step)

    def state(self) -> dict[str, Any]:
        """The source's own: transforms have none."""
        return self.source.state()

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from the source's states."""
        self.source.restore(states)

    def _through(self, sequences: List[Sequence], step: Step) -> list[Sequence]:
        for change in self.chain:
            sequences = change(sequences, step)
        return list(sequences)
