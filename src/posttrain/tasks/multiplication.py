"""Products of whole numbers of several digits, worked by partial products."""

from random import Random

from posttrain.tasks.answers import answered, worked
from posttrain.tasks.generated import GeneratedTask
from posttrain.tasks.task import Difficulty, tasks

Factors = tuple[int, int]

DIGITS: dict[Difficulty, tuple[tuple[int, int], ...]] = {"in": ((2, 1), (3, 1), (2, 2)), "harder": ((3, 2), (3, 3))}


@tasks.register("multiplication")
class Multiplication(GeneratedTask[Factors]):
    """Products of 2x1, 3x1 and 2x2 digits (3x2 and 3x3 in `harder`), the factors in either order.

    Styles: "steps" (partial products, then their sum, a line each), "direct" (the answer alone), "terse" (only the sums
    of the partial products), "prose". There are about 24,000 problems in `in`, 970,000 in `harder`.
    """

    name = "multiplication"
    styles = ("steps", "direct", "terse", "prose")

    def problem(self, rng: Random, difficulty: Difficulty) -> Factors:
        """Draw two factors, none of them 0 or 1."""
        first, second = (_number(rng, digits) for digits in rng.choice(DIGITS[difficulty]))
        return (first, second) if rng.random() < 0.5 else (second, first)

    def prompt(self, problem: Factors) -> str:
        """`Multiply 47 by 36.`"""
        return f"Multiply {problem[0]} by {problem[1]}."

    def canonical(self, problem: Factors) -> str:
        """The same for both orders of the factors."""
        return self.prompt((min(problem), max(problem)))

    def demonstration(self, problem: Factors, style: str) -> str:
        """The steps in `style`, then the answer."""
        answer = self.answer(problem)
        products, sums = _steps(problem)
        if style == "direct":
            return answered(answer)
        if style == "terse":
            return worked("\n".join(sums or products), answer)
        if style == "prose":
            together = f", and together {', '.join(sums)}" if sums else ""
            return worked(f"The parts are {', '.join(products)}{together}.", answer)
        return worked("\n".join(products + sums), answer)

    def answer(self, problem: Factors) -> str:
        """The product."""
        return str(problem[0] * problem[1])


def _number(rng: Random, digits: int) -> int:
    return rng.randint(max(2, 10 ** (digits - 1)), 10**digits - 1)


def _steps(problem: Factors) -> tuple[list[str], list[str]]:
    """The partial products and their running sums, each as an equation.

    The shorter factor is split into its digits (the second of two equally long ones); a single digit is not worth
    splitting, then the longer factor is.
    """
    kept, split = problem
    if (len(str(kept)) < len(str(split))) != (min(problem) < 10):
        kept, split = split, kept
    digits = str(split)
    parts = [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits) if digit != "0"]
    products = [f"{kept}*{part}={kept * part}" for part in parts]
    total, sums = kept * parts[0], []
    for part in parts[1:]:
        sums.append(f"{total}+{kept * part}={total + kept * part}")
        total += kept * part
    return products, sums
