"""Countdown in two parts: a plan that says what is joined with what, and its execution, which works that out."""

import re
from collections import Counter
from collections.abc import Sequence as List
from dataclasses import replace
from random import Random
from string import ascii_lowercase
from typing import Annotated, Literal

from pydantic import Field

from posttrain.data import Sample
from posttrain.rewards import Score
from posttrain.rewards.plan_adherence import adherence, plan_and_execution, read_titles
from posttrain.tasks.answers import answered
from posttrain.tasks.countdown import Countdown, CountdownTask, Way, misses, ways
from posttrain.tasks.generated import Part
from posttrain.tasks.task import Difficulty, tasks

PLAN, CLOSED_PLAN, EXECUTE, CLOSED_EXECUTE = "<plan>", "</plan>", "<execute>", "</execute>"
"""The paper's <EXPLORATION> and <EXECUTION>, as the small model's tokenizer has them: each is one token."""

ANOTHER_WAY = 0.4
"""How often a plan takes another way than the original solution, where there is one (sheet 33)."""

Kind = Literal["any", "sums", "products"]
Share = Annotated[float, Field(ge=0, le=1)]
_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
_TITLE = re.compile(r"(\w+)([-+*/])(\w+)")


@tasks.register("countdown_plans")
class CountdownPlans(CountdownTask):
    """Countdown answered by `<plan>1. 14+9\\n2. a*4</plan>` and `<execute>`, its steps with their results and the
    answer. In a plan `a` is what its first step gives, `b` its second: it has no values but the given numbers.

    The original solution is the way that joins large numbers first. Styles, on the same problems:

    - "causal": two plans in five take another way, where there is one; the execution carries the plan out.
    - "naive": the same plans; the execution is the original solution, whatever the plan says.
    - "other": every plan takes another way, where there is one, and is carried out: plans to be given to a model.
    - "execution": the original solution without a plan.

    `kind`: "sums" has solutions with + and - alone, "products" those with * or /. `missing`: so large a share of the
    plans ends elsewhere than at the target. Executions then end with `wanted` and the target, and where they came to
    another number with `no` in the place of an answer.

    Verifiers add the parts `adherence` (of titles, as the reward `plan_adherence`) and `followed`: 1 where the steps of
    the execution join what the plan joins, in its order; how well they are calculated does not matter.
    """

    name = "countdown_plans"
    styles = ("causal", "naive", "other", "execution")

    def __init__(self, *, kind: Kind = "any", missing: Share = 0.0, part: Part = "any") -> None:
        super().__init__(part=part)
        self.kind, self.missing = kind, missing

    def problem(self, rng: Random, difficulty: Difficulty) -> Countdown:
        """Draw a problem of the kind, with its original solution."""
        while True:
            numbers, way = super().problem(rng, difficulty)
            solution = ways(numbers, way.end.value)[0]
            multiplies = any(sign in solution.end.text for sign in "*/")
            if self.kind == "any" or multiplies == (self.kind == "products"):
                return Countdown(numbers, solution)

    def demonstration(self, problem: Countdown, style: str) -> str:
        """A plan and an execution in `style`."""
        solution, others = problem.solution, ways(problem.numbers, problem.solution.end.value)[1:]
        wanted = solution.end.value if self.missing else None
        if style == "execution":
            return _execution(problem.numbers, solution, wanted)
        rng = Random(f"plan of {self.prompt(problem)}")
        another = rng.random() < ANOTHER_WAY or style == "other"
        planned = rng.choice(others) if others and another else solution
        if self.missing and rng.random() < self.missing:
            planned = rng.choice(misses(problem))
        executed = solution if style == "naive" else planned
        return _plan(problem.numbers, planned) + _execution(problem.numbers, executed, wanted)

    def verify(self, sample: Sample, answer: str) -> Score:
        """As countdown does, and how far the execution is that of the plan."""
        score = super().verify(sample, answer)
        plan, execution = plan_and_execution(answer, (CLOSED_PLAN, EXECUTE))
        wanted = read_titles(plan)
        followed = bool(wanted) and _carries_out(execution, wanted)
        found = {"adherence": adherence(wanted, read_titles(execution)), "followed": float(followed)}
        return replace(score, parts={**score.parts, **found})


def titles(numbers: List[int], way: Way) -> list[str]:
    """The steps of a way without values: given numbers as they are, earlier results by their letters."""
    left, results, found = Counter(numbers), dict[str, int](), []

    def named(value: int) -> str:
        """A number that is given and is left, else the letter of the result, which is used up too."""
        if left[value]:
            left[value] -= 1
            return str(value)
        letter = next(letter for letter, result in results.items() if result == value)
        del results[letter]
        return letter

    for letter, step in zip(ascii_lowercase, way.steps, strict=False):
        one, operator, other, result = _parts(step)
        found.append(f"{named(one)}{operator}{named(other)}")
        results[letter] = result
    return found


def _plan(numbers: List[int], way: Way) -> str:
    return PLAN + "\n".join(f"{place}. {title}" for place, title in enumerate(titles(numbers, way), 1)) + CLOSED_PLAN


def _execution(numbers: List[int], way: Way, wanted: int | None = None) -> str:
    """Each step under its title, with the numbers that are left behind it; what is `wanted`; the answer, or no."""
    left, lines = Counter(numbers), []
    for place, (title, step) in enumerate(zip(titles(numbers, way), way.steps, strict=True), 1):
        one, _, other, result = _parts(step)
        left.subtract([one, other])
        left[result] += 1
        lines += [f"{place}. {title}", f"{step}, left {' '.join(map(str, sorted(left.elements())))}"]
    if wanted is not None:
        lines[-1] += f" wanted {wanted}"
    reached = wanted is None or way.end.value == wanted
    return EXECUTE + "\n".join([*lines, answered(way.end.text) if reached else "no"]) + CLOSED_EXECUTE


def _parts(step: str) -> tuple[int, str, int, int]:
    one, operator, other, result = _STEP.findall(step)[0]
    return int(one), operator, int(other), int(result)


def _carries_out(execution: str, plan: List[str]) -> bool:
    """Does the execution join what the titles of a plan name, in their order, with the results that it has found?"""
    steps = _STEP.findall(execution)
    if len(steps) != len(plan):
        return False
    results: dict[str, str] = {}
    for letter, title, (one, operator, other, result) in zip(ascii_lowercase, plan, steps, strict=False):
        named = _TITLE.fullmatch(title.replace(" ", ""))
        if named is None or named[2] != operator:
            return False
        wanted = [results.get(name, name) for name in (named[1], named[3])]
        if wanted != [one, other] and (operator in "-/" or wanted != [other, one]):
            return False
        results[letter] = result
    return True
