"""`Score`: what a verifier or a reward says of one answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def is_right(value: float, at: float = 1.0) -> bool:
    """Does this value mean that an answer is right? It does from `at` on: the full mark, where nothing else is said.

    Part marks that add up to the full mark in floats are the full mark.
    """
    return value >= at - 1e-9


@dataclass(frozen=True)
class Score:
    """The value of one answer.

    `value`: usually 0 (wrong) to 1 (right, see `is_right`). `parts`: named components, for logs. `info`: whatever
    explains the value (`extracted`, `reason` ...). `error`: why no value could be given; such an answer is left out of
    the statistics and counted, never silently scored 0. `tokens`: what of the value each drawn token has earned, for
    estimators that tell tokens apart (`gae`, `reinforce++`); whatever they leave of it comes at the last token, and ()
    leaves all.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    tokens: tuple[float, ...] = ()

    @property
    def right(self) -> bool:
        """Is the answer right? One without a value is not."""
        return self.error is None and is_right(self.value)
