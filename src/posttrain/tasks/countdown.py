"""Countdown: reach a target with given numbers.

The problems are our own and not reasoning-gym's: there, neighbouring seeds share nearly all of them (problem i of seed
s is drawn from s + i), every one costs a millisecond of sympy, and none has a search trace.
"""

import ast
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from random import Random
from typing import NamedTuple

from posttrain.data import Sample
from posttrain.rewards import Score
from posttrain.tasks.answers import answered, extract_answer, score_answer, worked
from posttrain.tasks.generated import GeneratedTask
from posttrain.tasks.spelling import unwrapped
from posttrain.tasks.task import Difficulty, tasks

NUMBERS: dict[Difficulty, int] = {"in": 3, "harder": 4}
LARGEST_NUMBER, LARGEST_TARGET = 20, 99


class Term(NamedTuple):
    """A value and the expression it came from; `operator` is its outermost one, empty for a given number."""

    value: int
    text: str
    operator: str = ""


class Way(NamedTuple):
    """One way to use up the numbers: each step as an equation, and the term that they end in."""

    steps: tuple[str, ...]
    end: Term


class Countdown(NamedTuple):
    """One problem: the `numbers` as they are given, and a `solution` that reaches the target."""

    numbers: tuple[int, ...]
    solution: Way


@tasks.register("countdown")
class CountdownTask(GeneratedTask[Countdown]):
    """Reach a target (1 to 99) with 3 numbers (4 in `harder`) from 1 to 20, each used exactly once, with + - * /.

    Every valid expression is right, not only the demonstrated one. Styles: "steps" (the solution's operations, a line
    each), "direct" (the expression alone), "search" (one to three attempts that miss, then the one that does not).
    """

    name = "countdown"
    styles: tuple[str, ...] = ("steps", "direct", "search")

    def problem(self, rng: Random, difficulty: Difficulty) -> Countdown:
        """Draw numbers and a way to combine them that ends within the range of targets."""
        while True:
            numbers = tuple(rng.randint(1, LARGEST_NUMBER) for _ in range(NUMBERS[difficulty]))
            way = _way(rng, numbers)
            if way.end.value <= LARGEST_TARGET:
                return Countdown(numbers, way)

    def prompt(self, problem: Countdown) -> str:
        """`Use 3, 5, 9 once each to make 24.`"""
        return _question(problem.numbers, problem.solution.end.value)

    def canonical(self, problem: Countdown) -> str:
        """The same whatever the order of the numbers."""
        return _question(sorted(problem.numbers), problem.solution.end.value)

    def demonstration(self, problem: Countdown, style: str) -> str:
        """The way to the solution in `style`, then its expression."""
        expression = self.answer(problem)
        if style == "direct":
            return answered(expression)
        if style == "search":
            attempts = [f"{','.join(way.steps)} no" for way in misses(problem)]
            return worked("\n".join([*attempts, f"{','.join(problem.solution.steps)} yes"]), expression)
        return worked("\n".join(problem.solution.steps), expression)

    def answer(self, problem: Countdown) -> str:
        """An expression that reaches the target: it also says which numbers and which target there were."""
        return problem.solution.end.text

    def verify(self, sample: Sample, answer: str) -> Score:
        """1 if the answer's expression has the value and uses just the numbers of `sample.answer`, else 0.

        `info["reason"]` is "found", "not_an_expression", "wrong_numbers", "wrong", or as `verify_number` says.
        """
        reference = evaluate(sample.answer or "")
        if reference is None:
            return Score(0.0, error=f"sample {sample.id}: answer {sample.answer!r} is no expression to compare with")
        extraction = extract_answer(answer)
        if extraction.value is None:
            return score_answer(extraction, False, extraction.reason)
        target, numbers = reference
        found = _equation(extraction.value, numbers)
        if found is None:
            return score_answer(extraction, False, "not_an_expression")
        reached, used = found
        if used != numbers:
            return score_answer(extraction, False, "wrong_numbers")
        return score_answer(extraction, reached == target, "found" if reached == target else "wrong")


_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_LATEX = (
    (re.compile(r"\\left|\\right"), ""),
    (re.compile(r"\\(?:times|cdot) ?|(?<=[\d)])x(?=[\d(])"), "*"),
    (re.compile(r"\\div ?"), "/"),
)


def _equation(text: str, numbers: list[int]) -> tuple[Fraction, list[int]] | None:
    """The side of an equation (mostly there is one side alone) that has the numbers; None where the sides differ."""
    sides = [evaluate(side) for side in unwrapped(text).split("=")]
    known = [side for side in sides if side is not None]
    if len(known) < len(sides) or len({value for value, _ in known}) > 1:
        return None
    return next((side for side in known if side[1] == numbers), known[0])


def evaluate(expression: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression of whole numbers, + - * / and parentheses, and its numbers in rising order.

    Signs may be LaTeX's or Unicode's. None for anything else, division by zero included. At most 200 characters are
    read.
    """
    text = unwrapped(expression).translate(_SIGNS)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    if len(text) > 200 or not set(text) <= set("0123456789+-*/() "):
        return None
    numbers: list[int] = []
    try:
        value = _value(ast.parse(text, mode="eval").body, numbers)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return value, sorted(numbers)


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise ValueError(f"{type(node).__name__} is not allowed")
    left, right = _value(node.left, numbers), _value(node.right, numbers)
    match node.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
    raise ValueError(f"{type(node.op).__name__} is not allowed")


def _question(numbers: tuple[int, ...] | list[int], target: int) -> str:
    return f"Use {', '.join(map(str, numbers))} once each to make {target}."


def _way(rng: Random, numbers: tuple[int, ...]) -> Way:
    """Combine two terms at random until one is left; all results are positive whole numbers."""
    terms = [Term(number, str(number)) for number in numbers]
    steps = []
    while len(terms) > 1:
        left, right = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        if left.value < right.value:
            left, right = right, left
        term = _combine(left, rng.choice(_operators(left, right)), right)
        steps.append(f"{left.value}{term.operator}{right.value}={term.value}")
        terms.append(term)
    return Way(tuple(steps), terms[0])


def ways(numbers: Sequence[int], target: int) -> list[Way]:
    """Every way to use up the numbers and reach the target whose results are positive whole numbers, each once.

    The order is the same in every process: larger numbers first.
    """
    found: dict[tuple[str, ...], Way] = {}

    def search(terms: list[Term], steps: tuple[str, ...]) -> None:
        if len(terms) == 1:
            if terms[0].value == target:
                found.setdefault(steps, Way(steps, terms[0]))
            return
        for one, other in combinations(range(len(terms)), 2):
            left, right = terms[one], terms[other]
            rest = [term for place, term in enumerate(terms) if place not in (one, other)]
            for operator in _operators(left, right):
                term = _combine(left, operator, right)
                step = f"{left.value}{operator}{right.value}={term.value}"
                search(sorted([*rest, term], reverse=True), (*steps, step))

    search(sorted((Term(number, str(number)) for number in numbers), reverse=True), ())
    return list(found.values())


def _operators(left: Term, right: Term) -> list[str]:
    """Those that give a positive whole number, where `left` is not the smaller one."""
    operators = ["+", "*"]
    if left.value > right.value:
        operators.append("-")
    if left.value % right.value == 0 and right.value > 1:
        operators.append("/")
    return operators


def _combine(left: Term, operator: str, right: Term) -> Term:
    a, b = left.value, right.value
    value = a + b if operator == "+" else a - b if operator == "-" else a * b if operator == "*" else a // b
    before = f"({left.text})" if operator in "*/" and left.operator in ("+", "-") else left.text
    loose = {"+": (), "-": ("+", "-"), "*": ("+", "-"), "/": ("+", "-", "*", "/")}[operator]
    after = f"({right.text})" if right.operator in loose else right.text
    return Term(value, f"{before}{operator}{after}", operator)


def misses(problem: Countdown) -> list[Way]:
    """One to three ways that end elsewhere, each at least as near to the target as the one before.

    They are drawn from the problem alone, so that it is always demonstrated in the same words.
    """
    rng = Random(f"{problem.solution.end.text} of {problem.numbers}")
    target = problem.solution.end.value
    wanted = rng.randint(1, 3)
    ways: dict[tuple[str, ...], Way] = {}
    while len(ways) < wanted:
        way = _way(rng, problem.numbers)
        if way.end.value != target:
            ways[way.steps] = way
    return sorted(ways.values(), key=lambda way: (-abs(way.end.value - target), way))
