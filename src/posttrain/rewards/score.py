"""`Score`: what a verifier or a reward says of one answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """The value of one answer.

    `value`: usually 0 (wrong) to 1 (right). `parts`: named components, for logs. `info`: whatever explains the value
    (`extracted`, `reason` ...). `error`: why no value could be given; such an answer is left out of the statistics and
    counted, never silently scored 0. `tokens`: what of the value each drawn token has earned, for estimators that tell
    tokens apart (`gae`, `reinforce++`); whatever they leave of it comes at the last token, and () leaves all.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    tokens: tuple[float, ...] = ()
