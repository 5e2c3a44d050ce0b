"""What every task gives: problems by seed and difficulty, demonstrations in several styles, and a verifier."""

from collections.abc import Sequence as List
from typing import Literal, Protocol, runtime_checkable

from posttrain.data import Message, Sample
from posttrain.registry import Registry
from posttrain.rewards import Score

Difficulty = Literal["in", "harder"]
"""`in` is the distribution that demonstrations come from; `harder` has longer or larger problems of the same kind."""


class Task(Protocol):
    """One family of problems. Instances are built by `tasks` from a recipe's `{task: name, option: value}`."""

    name: str
    styles: tuple[str, ...]

    def samples(
        self, count: int, seed: int, *, difficulty: Difficulty = "in", style: str | None = None
    ) -> list[Sample]:
        """`count` distinct problems with demonstrations in `style` (default: the first of `styles`).

        The same arguments give the same samples on every machine. The problem set depends on `seed` and `difficulty`
        alone, so that two styles of one seed demonstrate the same problems. `Sample.meta` holds `difficulty`, `style`.
        """
        ...

    def verify(self, sample: Sample, answer: str) -> Score:
        """Score the text of one assistant turn.

        Value 1 is right; 0 is wrong, missing, several or malformed, and `info["reason"]` says which.
        """
        ...


@runtime_checkable
class Interactive(Protocol):
    """A task whose problems are dialogues: it plays whoever the model talks to."""

    def environment(self, sample: Sample, turns: List[Message]) -> str | Message | None:
        """What is replied to the last of `turns`, which are those behind the sample's prompt.

        The result of a tool as text, a turn of another role (the user's), or None where the dialogue ends. The same
        arguments give the same reply.
        """
        ...


tasks: Registry[type] = Registry("task")
"""Task classes by name; the keyword-only parameters of `__init__` are the options."""
