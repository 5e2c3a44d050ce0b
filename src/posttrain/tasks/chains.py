"""Chained arithmetic: `Compute (7+5)*3-4.`, worked one operation at a time from left to right."""

import re
from dataclasses import replace
from itertools import cycle
from random import Random
from string import ascii_lowercase

from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.rewards import Score
from posttrain.rewards.program import verify_program
from posttrain.tasks.answers import answered, canonical, verify_number, verify_thought, worked
from posttrain.tasks.generated import GeneratedTask, Part
from posttrain.tasks.task import Difficulty, tasks

Chain = tuple[int, tuple[tuple[str, int], ...]]
"""The first number, then (operator, number) in the order of working."""

TERMS: dict[Difficulty, tuple[int, int]] = {"in": (2, 4), "harder": (5, 7)}
LIMIT: dict[Difficulty, int] = {"in": 99, "harder": 999}

CHECK_AGAIN, MOST_CHECKS = 2 / 3, 6
"""Of the styles "rechecked" and "inside": the chance of one more check, and how many there are at most."""

HEADER = "def solution():"
"""What the prompt of a program ends in; the answer goes on behind a line break and a space."""

_STEP = re.compile(r"(-?\d+)([+*-])(-?\d+)=(-?\d+)")


@tasks.register("chains")
class Chains(GeneratedTask[Chain]):
    """Sums, differences and products of 2 to 4 numbers (5 to 7 in `harder`), every result within 99 (999).

    Parentheses stand where a product takes a sum: the usual order of operations and left to right are the same.
    `terms` (fewest and most numbers) and `limit` make problems of other sizes, whatever the difficulty.
    Styles: "steps" (one operation on each line), "direct" (the answer alone), "terse" (the results alone), "prose",
    "rechecked" (the steps, and a random number of times "again" and the same steps: nothing says when to stop),
    "inside" (the same with the answer at the end of the thought, and nothing behind it),
    "program" (the prompt ends in `def solution():`, the answer is its body, and what it returns counts).
    """

    name = "chains"
    styles = ("steps", "direct", "terse", "prose", "rechecked", "inside", "program")

    def __init__(self, *, terms: tuple[int, int] | None = None, limit: int | None = None, part: Part = "any") -> None:
        super().__init__(part=part)
        if terms is not None and not 2 <= terms[0] <= terms[1]:
            raise UserError(f"task 'chains': terms is {list(terms)}; give the fewest (2 or more) and the most numbers")
        if limit is not None and limit < 99:
            raise UserError(f"task 'chains': limit is {limit}; give 99 or more, the size of the first number")
        self.terms, self.limit = terms, limit

    def problem(self, rng: Random, difficulty: Difficulty) -> Chain:
        """Draw a chain; both the numbers and the running results stay within the limit."""
        limit = self.limit or LIMIT[difficulty]
        first = value = rng.randint(1, 99)
        links = []
        for _ in range(rng.randint(*(self.terms or TERMS[difficulty])) - 1):
            operator, number = _link(rng, value, limit)
            value = _apply(value, operator, number)
            links.append((operator, number))
        return first, tuple(links)

    def prompt(self, problem: Chain) -> str:
        """`Compute (7+5)*3-4.`"""
        text, additive = str(problem[0]), False
        for operator, number in problem[1]:
            if operator == "*" and additive:
                text = f"({text})"
            text += f"{operator}{number}"
            additive = operator != "*"
        return f"Compute {text}."

    def demonstration(self, problem: Chain, style: str) -> str:
        """The steps in `style`, then the answer."""
        steps, answer = _steps(problem), self.answer(problem)
        if style == "direct":
            return answered(answer)
        if style == "terse":
            return worked(" ".join(step.partition("=")[2] for step in steps), answer)
        if style == "prose":
            return worked("First " + ", then ".join(steps) + ".", answer)
        if style in ("rechecked", "inside"):
            thought = "\nagain\n".join(["\n".join(steps)] * (1 + self._checks(problem)))
            return worked(thought, answer) if style == "rechecked" else f"<think>{thought}\n{answered(answer)}</think>"
        if style == "program":
            return _program(problem)
        return worked("\n".join(steps), answer)

    def _checks(self, problem: Chain) -> int:
        """How often a problem is worked again: one more time with a chance of 2 in 3, whatever came before."""
        rng = Random(f"checks {self.prompt(problem)}")
        count = 0
        while count < MOST_CHECKS and rng.random() < CHECK_AGAIN:
            count += 1
        return count

    def answer(self, problem: Chain) -> str:
        """The last result."""
        return _steps(problem)[-1].partition("=")[2]

    def verify(self, sample: Sample, answer: str) -> Score:
        """Score the answer as a number; part `faithful`: 1 if its steps, replayed, lead to it (then it is right).

        Every step has to take up the result before it and the question's next number, and to be calculated rightly, and
        the last result has to be the answer; all of it may come several times. No steps, or results alone, lead to
        nothing: 0. (Sheet 13 puts this in the place of the judge of arXiv 2604.18574.) A program is run instead, and
        of style "inside" the thought is read.
        """
        if sample.meta.get("style") == "program":
            return verify_program(sample, answer, header=f"{HEADER}\n ")
        inside = sample.meta.get("style") == "inside"
        score = (verify_thought if inside else verify_number)(sample, answer)
        faithful = _leads_to(sample.prompt_text, answer, score.info.get("extracted"))
        return replace(score, parts={**score.parts, "faithful": float(faithful)})

    def _sample(self, problem: Chain, difficulty: Difficulty, style: str) -> Sample:
        """With the header of a program at the end of the prompt, where it is neither drawn nor trained."""
        sample = super()._sample(problem, difficulty, style)
        if style != "program":
            return sample
        return replace(sample, prompt=(user(f"{self.prompt(problem)}\n{HEADER}"),))

    def details(self, problem: Chain) -> dict[str, int]:
        """`steps`: how many operations there are."""
        return {"steps": len(problem[1])}


def _link(rng: Random, value: int, limit: int) -> tuple[str, int]:
    """An operation that keeps `value` within `limit`: a product one time in three, where a small factor fits."""
    largest = min(9, limit // max(abs(value), 1))
    if largest >= 2 and rng.random() < 1 / 3:
        return "*", rng.randint(2, largest)
    rise, fall = min(99, limit - value), min(99, limit + value)
    if rise >= 1 and (fall < 1 or rng.random() < 0.5):
        return "+", rng.randint(1, rise)
    return "-", rng.randint(1, fall)


def _apply(value: int, operator: str, number: int) -> int:
    return {"+": value + number, "-": value - number, "*": value * number}[operator]


def _leads_to(question: str, text: str, answer: str | None) -> bool:
    """Do the steps before `</think>` work the question, one number after the other, and end in `answer`?"""
    thought = text.rpartition("</think>")[0].rpartition("<think>")[2].partition("<answer>")[0]
    steps = _STEP.findall(thought)
    result, *numbers = [int(number) for number in re.findall(r"\d+", question)] or [0]
    if not numbers or len(steps) % len(numbers) or re.search(r"[\d=]", _STEP.sub("", thought)):
        return False
    first = result
    for place, (left, operator, right, found) in enumerate(steps):
        if place % len(numbers) == 0:
            result = first
        number = numbers[place % len(numbers)]
        a, b = int(left), int(right)
        worked_on = (a, b) == (result, number) or (operator != "-" and (b, a) == (result, number))
        result = _apply(a, operator, b)
        if not worked_on or result != int(found):
            return False
    return bool(steps) and answer is not None and canonical(answer) == str(result)


def _steps(problem: Chain) -> list[str]:
    """Each operation with its result: `12*3=36`."""
    value, steps = problem[0], []
    for operator, number in problem[1]:
        result = _apply(value, operator, number)
        steps.append(f"{value}{operator}{number}={result}")
        value = result
    return steps


def _program(problem: Chain) -> str:
    """The body of a function: `a=12*3`, then ` b=a+4`, then ` return b`."""
    value, lines = str(problem[0]), []
    for name, (operator, number) in zip(cycle(ascii_lowercase), problem[1], strict=False):
        lines.append(f"{name}={value}{operator}{number}")
        value = name
    return "\n ".join([*lines, f"return {value}"])
