"""Strings of digits, reversed, sorted or rotated: skills that a small model learns and forgets within a minute."""

from random import Random
from typing import Any, Literal

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards import Score
from posttrain.tasks.answers import answered, verify_exact
from posttrain.tasks.generated import GeneratedTask, Part
from posttrain.tasks.task import Difficulty, tasks

Operation = Literal["reverse", "sort", "rotate"]

LENGTHS: dict[Difficulty, tuple[int, int]] = {"in": (3, 5), "harder": (9, 11)}


@tasks.register("digits")
class Digits(GeneratedTask[str]):
    """What becomes of 3 to 5 digits (9 to 11 in `harder`) under one `operation`, without steps between.

    `reverse` writes them backwards, `sort` from the least to the greatest, `rotate` moves the first one to the end.
    Three tasks that have all but one word of the question in common: trained on one after the other, they are what
    continual learning is measured with. `lengths` (fewest and most digits) makes other sizes, whatever the difficulty.
    """

    name = "digits"
    styles = ("direct",)

    def __init__(
        self, *, operation: Operation = "reverse", lengths: tuple[int, int] | None = None, part: Part = "any"
    ) -> None:
        super().__init__(part=part)
        if lengths is not None and not 2 <= lengths[0] <= lengths[1]:
            raise UserError(
                f"task 'digits': lengths is {list(lengths)}; give the fewest (2 or more) and the most digits"
            )
        self.operation, self.lengths = operation, lengths

    def problem(self, rng: Random, difficulty: Difficulty) -> str:
        """Draw digits."""
        count = rng.randint(*(self.lengths or LENGTHS[difficulty]))
        return "".join(str(rng.randint(0, 9)) for _ in range(count))

    def prompt(self, problem: str) -> str:
        """`Reverse 40719.`"""
        return f"{self.operation.title()} {problem}."

    def canonical(self, problem: str) -> str:
        """The same for every operation: digits that one of them is tested on are in no training part of the others."""
        return problem

    def demonstration(self, problem: str, style: str) -> str:
        """The answer alone."""
        return answered(self.answer(problem))

    def answer(self, problem: str) -> str:
        """The digits after the operation."""
        if self.operation == "rotate":
            return problem[1:] + problem[0]
        return "".join(sorted(problem) if self.operation == "sort" else reversed(problem))

    def details(self, problem: str) -> dict[str, Any]:
        """`operation`, and `length`: how many digits."""
        return {"operation": self.operation, "length": len(problem)}

    def verify(self, sample: Sample, answer: str) -> Score:
        """Score the digits, each of which counts: 012 is not 12."""
        return verify_exact(sample, answer)
