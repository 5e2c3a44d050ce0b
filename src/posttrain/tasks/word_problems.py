"""`word_problems`: templated stories that take several steps of arithmetic.

A story starts with a number, goes on with events that change it, and asks for the number at the end (`scenarios` holds
the stories and their words). The equations, their sentences and the answer come from the same draw and cannot disagree.
Every number that is given or worked out is an integer from `SMALLEST` to `LARGEST`.
"""

from dataclasses import dataclass
from random import Random

from posttrain.tasks.answers import answered, worked
from posttrain.tasks.generated import GeneratedTask
from posttrain.tasks.scenarios import OPERATIONS, PRONOUNS, SCENARIOS, THINGS, Scenario
from posttrain.tasks.task import Difficulty, tasks

SMALLEST, LARGEST = 2, 99
STEPS: dict[Difficulty, tuple[int, int]] = {"in": (2, 3), "harder": (4, 5)}


@dataclass(frozen=True)
class WordProblem:
    """One story: its text, the equations in order, each equation in a sentence, and the number asked for."""

    scenario: str
    text: str
    equations: tuple[str, ...]
    sentences: tuple[str, ...]
    answer: int


@tasks.register("word_problems")
class WordProblems(GeneratedTask[WordProblem]):
    """Stories that take 2 or 3 steps of arithmetic (4 or 5 in `harder`), with the same operations and sizes of number.

    Styles: "steps" (one equation on each line), "prose" (each equation in a short sentence), "direct" (the answer
    alone). Some 180 words in all.
    """

    name = "word_problems"
    styles = ("steps", "prose", "direct")

    def problem(self, rng: Random, difficulty: Difficulty) -> WordProblem:
        """Draw a story; every number of steps is as likely."""
        return word_problem(rng, rng.randint(*STEPS[difficulty]))

    def prompt(self, problem: WordProblem) -> str:
        """`Mia has 12 shells. She gives 2 to each of 3 friends. She finds 7 more. How many shells ...?`"""
        return problem.text

    def demonstration(self, problem: WordProblem, style: str) -> str:
        """The equations in `style`, then the answer."""
        if style == "direct":
            return answered(self.answer(problem))
        work = " ".join(problem.sentences) if style == "prose" else "\n".join(problem.equations)
        return worked(work, self.answer(problem))

    def answer(self, problem: WordProblem) -> str:
        """The result of the last equation."""
        return str(problem.answer)

    def canonical(self, problem: WordProblem) -> str:
        """The scenario and its equations: other names and things do not make it another problem."""
        return f"{problem.scenario}: {' '.join(problem.equations)}"

    def details(self, problem: WordProblem) -> dict[str, str | list[str]]:
        """`steps`: the equations in order. `scenario`: which kind of story it is."""
        return {"steps": list(problem.equations), "scenario": problem.scenario}


def word_problem(rng: Random, steps: int) -> WordProblem:
    """A random story that takes `steps` equations (at least 2)."""
    while True:
        story = _Story(rng.choice(SCENARIOS), rng)
        if story.tell(steps):
            equations, sentences = tuple(story.equations), tuple(story.sentences)
            return WordProblem(story.scenario.name, " ".join(story.text), equations, sentences, story.value)


def operands(operation: str, value: int, before: int, rng: Random) -> tuple[int, int] | None:
    """Numbers `a` and `b` that keep the results of an operation on `value` in range; None where there are none."""
    low, high, b = SMALLEST, 20, rng.randint(2, 9)
    if operation == "/":
        divisors = [a for a in range(2, 10) if value % a == 0 and value // a >= SMALLEST]
        return (rng.choice(divisors), 0) if divisors else None
    if operation == "both":
        return (before, 0) if before and before + value <= LARGEST else None
    if operation == "from":
        low, high = value + SMALLEST, min(value + 20, LARGEST)
    elif operation == "+":
        high = min(high, LARGEST - value)
    elif operation == "-":
        high = min(high, value - SMALLEST)
    elif operation == "*":
        high = min(5, LARGEST // value)
    elif operation == "+*":
        high = min(9, (LARGEST - value) // b)
    elif operation == "-*":
        high = min(9, (value - SMALLEST) // b)
    return (rng.randint(low, high), b) if low <= high else None


def results(operation: str, value: int, a: int, b: int) -> list[tuple[str, int]]:
    """The equations of an operation, in order, as (left side, result); the last result is the new number."""
    match operation:
        case "+*":
            return [(f"{a}*{b}", a * b), (f"{value}+{a * b}", value + a * b)]
        case "-*":
            return [(f"{a}*{b}", a * b), (f"{value}-{a * b}", value - a * b)]
        case "from":
            return [(f"{a}-{value}", a - value)]
        case "both":
            return [(f"{a}+{value}", a + value)]
    return [(f"{value}{operation}{a}", {"+": value + a, "-": value - a, "*": value * a, "/": value // a}[operation])]


class _Story:
    """A story while it is told: the number so far (`value`), the one before the last event, what has been said."""

    def __init__(self, scenario: Scenario, rng: Random) -> None:
        self.scenario, self.rng = scenario, rng
        self.people = rng.sample(tuple(PRONOUNS), 6)
        self.thing, *self.others = rng.sample(THINGS, 6)
        self.value = self.before = 0
        self.text: list[str] = []
        self.equations: list[str] = []
        self.sentences: list[str] = []

    def tell(self, steps: int) -> bool:
        """Tell the whole story in `steps` equations; False where the numbers left no way to go on."""
        self.open()
        closing = self.rng.choice((None, *self.scenario.closings))
        told = ""
        while (left := steps - len(self.equations) - bool(closing)) > 0:
            fitting = [event for event in self.scenario.events if OPERATIONS[event[0]] <= left and event[1] != told]
            if not fitting:
                return False
            operation, told = self.rng.choice(fitting)
            if not self.happen(operation, told, self.scenario.now, moves_on=self.scenario.people):
                return False
        if closing is None:
            self.text.append(self.scenario.question.format_map(self.words()))
            return True
        return self.happen(closing.operation, closing.text, closing.now, question=closing.question)

    def open(self) -> None:
        """Say the first number, which is given or a product of two given ones."""
        product, text = self.rng.choice(self.scenario.openings)
        a = self.rng.randint(2, 9) if product else self.rng.randint(*self.scenario.first)
        b = self.rng.randint(2, 9)
        words = self.words(a, b)
        self.text.append(text.format_map(words))
        self.value = a * b if product else a
        if product:
            self.work_out(f"{a}*{b}", self.value, self.scenario.product, words)

    def happen(self, operation: str, text: str, now: str, *, question: str = "", moves_on: bool = False) -> bool:
        """Tell one event; False where no numbers fit. `moves_on`: the next person is the one talked about from now."""
        numbers = operands(operation, self.value, self.before, self.rng)
        if numbers is None:
            return False
        words = self.words(*numbers)
        self.text += [part.format_map(words) for part in (text, question) if part]
        if moves_on:
            self.people.append(self.people.pop(0))
            words = self.words(*numbers)
        *products, (left, value) = results(operation, self.value, *numbers)
        for product, result in products:
            self.work_out(product, result, self.scenario.product, words)
        self.work_out(left, value, now, words)
        self.before, self.value = self.value, value
        self.others.append(self.others.pop(0))
        return True

    def work_out(self, left: str, result: int, sentence: str, words: dict[str, str]) -> None:
        """Note one equation, and say it in a sentence."""
        self.equations.append(f"{left}={result}")
        self.sentences.append(sentence.format_map(words | {"eq": self.equations[-1]}))

    def words(self, a: int = 0, b: int = 0) -> dict[str, str]:
        """What the placeholders of the scenario's texts stand for now."""
        name, friend, before = self.people[0], self.people[1], self.people[-1]
        he = PRONOUNS[name]
        return {"name": name, "friend": friend, "before": before, "things": self.thing, "other": self.others[0]} | {
            "he": he, "He": he.title(), "him": "him" if he == "he" else "her", "a": str(a), "b": str(b)
        }  # fmt: skip
