"""General Points: reach 24 with four cards, where the question says what J, Q and K are worth (arXiv 2510.00237)."""

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from random import Random
from typing import Any, Literal, NamedTuple

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards import Score
from posttrain.tasks.answers import answered, extract_answer, worked
from posttrain.tasks.countdown import evaluate
from posttrain.tasks.generated import GeneratedTask, Part, part_of
from posttrain.tasks.spelling import unwrapped
from posttrain.tasks.task import Difficulty, tasks

Rule = int | tuple[int, int, int]
"""What J, Q and K are worth: the same, or each its own."""

MIXED: tuple[Rule, ...] = (8, 9, 10, (8, 9, 10), (7, 8, 9), (8, 9, 10), (5, 7, 9), (6, 8, 10))
"""The diverse rules of the paper's code; (8, 9, 10) is there twice, and so has a double share."""
FACES = "JQK"
CARDS: dict[Difficulty, int] = {"in": 4, "harder": 5}
RIGHT, WRONG_VALUE, WRONG_NUMBERS, ILLEGAL = 5.0, -1.0, -2.0, -3.0
"""The rewards of the paper's code; part marks for unfinished formulas are left out."""


class Formula(NamedTuple):
    """An expression with its value, its outermost operator (empty for a card) and its operations as equations."""

    value: Fraction
    text: str
    operator: str = ""
    steps: tuple[str, ...] = ()


class Deal(NamedTuple):
    """One problem. `values`: what the question says the faces are worth. `solution`: under the rule that scores."""

    cards: tuple[str, ...]
    values: Mapping[str, int]
    target: int
    solution: Formula


@tasks.register("general_points")
class GeneralPointsTask(GeneratedTask[Deal]):
    """Use every card once to make `target` (24), with + - * / and parentheses. Unsolvable deals are drawn again.

    Every formula that is exactly right counts, not only the demonstrated one. Styles: "direct" (the formula alone),
    "steps" (the cards' values, then each operation). Options:

    - `target`: one number, or several of which each deal draws one.
    - `cards`: how many (default 4; 5 in `harder`). `numbers`: the smallest and largest number card. `faces`: which face
      cards are in the pack. `with_face`: every deal has one. `large`: smallest and largest of additional number cards,
      of which every deal has one.
    - `rules`: what J, Q and K are worth, one number or three; each deal draws one of the list; "mixed" is the list of
      the paper's code.
    - `scored`: a probe: faces are worth this, whatever the question says. Who is right on it did not read the question.

    `format_validity` of an evaluation is the share of legal formulas with the numbers that the question states. Left
    out: deals are drawn evenly over rules by chance, not to the last one; the demonstrated solution has whole positive
    results where there is such a one.
    """

    name = "general_points"
    styles = ("direct", "steps")

    def __init__(
        self,
        *,
        cards: int | None = None,
        target: int | list[int] = 24,
        numbers: tuple[int, int] = (1, 10),
        faces: str = FACES,
        with_face: bool = False,
        large: tuple[int, int] | None = None,
        rules: Literal["mixed"] | list[Rule] = [10],  # noqa: B006
        scored: Rule | None = None,
        part: Part = "any",
    ) -> None:
        super().__init__(part=part)
        if not set(faces) <= set(FACES):
            raise UserError(f"task 'general_points': faces is '{faces}'; give some of J, Q and K, such as JQ")
        if with_face and not faces:
            raise UserError("task 'general_points': with_face is on, but there are no face cards")
        if cards is not None and not 2 <= cards <= 6:
            raise UserError(f"task 'general_points': cards is {cards}; give 2 to 6")
        if not rules or target == []:
            raise UserError("task 'general_points': rules and target may be lists, but not empty ones")
        self.cards, self.with_face = cards, with_face
        self.targets = [target] if isinstance(target, int) else list(target)
        self.pack = [str(number) for number in range(numbers[0], numbers[1] + 1)] + list(faces)
        self.faces = faces
        self.large = [str(number) for number in range(large[0], large[1] + 1)] if large else []
        self.rules = MIXED if rules == "mixed" else tuple(rules)
        self.scored = scored

    def problem(self, rng: Random, difficulty: Difficulty) -> Deal:
        """Draw cards until they can be solved under the rule that scores."""
        while True:
            count = self.cards or CARDS[difficulty]
            cards = [rng.choice(self.pack + self.large) for _ in range(count)]
            if self.large:
                cards[rng.randrange(count)] = rng.choice(self.large)
            elif self.with_face:
                cards[rng.randrange(count)] = rng.choice(self.faces)
            if self.part != "any" and part_of(_hand(cards)) != self.part:
                continue  # solving it would be in vain
            stated = _values(rng.choice(self.rules), self.faces)
            worth = stated if self.scored is None else _values(self.scored, self.faces)
            target = rng.choice(self.targets)
            solution = solve(_numbers(cards, worth), target, rng)
            if solution is not None:
                return Deal(tuple(cards), stated, target, solution)

    def prompt(self, problem: Deal) -> str:
        """`J=10, Q=10, K=10. Use 3, J, 8, 2 once each to make 24.`"""
        rule = ", ".join(f"{face}={value}" for face, value in problem.values.items())
        return f"{rule}{'. ' if rule else ''}Use {', '.join(problem.cards)} once each to make {problem.target}."

    def canonical(self, problem: Deal) -> str:
        """The cards, whatever their order and worth: those of the test part are new under every rule."""
        return _hand(problem.cards)

    def demonstration(self, problem: Deal, style: str) -> str:
        """The formula, in "steps" with the cards' values and the operations before it."""
        if style == "direct":
            return answered(problem.solution.text)
        numbers = ",".join(map(str, _numbers(problem.cards, problem.values)))
        return worked("\n".join([numbers, *problem.solution.steps]), problem.solution.text)

    def answer(self, problem: Deal) -> str:
        """A formula that is right: it also says which numbers and which target score."""
        return problem.solution.text

    def details(self, problem: Deal) -> dict[str, Any]:
        """`numbers`: what the cards are worth by the question."""
        return {"numbers": _numbers(problem.cards, problem.values)}

    def verify(self, sample: Sample, answer: str) -> Score:
        """1 if the formula (what stands before "=", if anything does) uses the numbers and has the value of the answer.

        `parts`: "format" (legal, with the numbers that the question states), "reward" (5 right, -1 another value, -2
        other numbers, -3 illegal, division by zero included). Values are exact: 8/(3-8/3) is 24.
        """
        reference = evaluate(sample.answer or "")
        if reference is None:
            return Score(0.0, error=f"sample {sample.id}: answer {sample.answer!r} is no formula to compare with")
        extraction = extract_answer(answer)
        if extraction.value is None:
            return Score(0.0, {"format": 0.0, "reward": ILLEGAL}, {"reason": extraction.reason})
        info = {"extracted": extraction.value}
        found = evaluate(unwrapped(extraction.value).partition("=")[0])
        if found is None:
            return Score(0.0, {"format": 0.0, "reward": ILLEGAL}, {**info, "reason": "illegal"})
        valid = float(found[1] == sorted(sample.meta.get("numbers", reference[1])))
        if found[1] != reference[1]:
            return Score(0.0, {"format": valid, "reward": WRONG_NUMBERS}, {**info, "reason": "wrong_numbers"})
        right = found[0] == reference[0]
        parts = {"format": valid, "reward": RIGHT if right else WRONG_VALUE}
        return Score(float(right), parts, {**info, "reason": "found" if right else "wrong"})


def _hand(cards: Iterable[str]) -> str:
    return ",".join(sorted(cards))


def _values(rule: Rule, faces: str) -> dict[str, int]:
    worth = (rule, rule, rule) if isinstance(rule, int) else rule
    return {face: value for face, value in zip(FACES, worth, strict=True) if face in faces}


def _numbers(cards: list[str] | tuple[str, ...], values: Mapping[str, int]) -> list[int]:
    return [values[card] if card in values else int(card) for card in cards]


# --- the solver -------------------------------------------------------------------------------------------------------


def solve(numbers: list[int], target: int, rng: Random) -> Formula | None:
    """A random formula over all numbers that is exactly `target`, with whole positive results where there is one."""
    cards = tuple(Formula(Fraction(number), str(number)) for number in numbers)
    for plain in (True, False):
        found = _reach(cards, Fraction(target), rng, plain)
        if found is not None:
            return found
    return None


def _reach(cards: tuple[Formula, ...], target: Fraction, rng: Random, plain: bool) -> Formula | None:
    """Search backwards: what the smaller part of the cards makes says what the larger one has to be."""
    if len(cards) == 1:
        return cards[0] if cards[0].value == target else None
    if len(cards) <= 3 and target not in _values_of(tuple(sorted(cards)), plain):
        return None
    splits = list(_splits(cards))
    rng.shuffle(splits)
    for small, large in splits:
        ways = list(_all(small, plain))
        rng.shuffle(ways)
        for way in ways:
            for needed, operator, first in _needed(way.value, target):
                if plain and (needed <= 0 or needed.denominator != 1):
                    continue
                rest = _reach(large, needed, rng, plain)
                if rest is not None:
                    return combine(way, operator, rest) if first else combine(rest, operator, way)
            if way.value == target == 0:  # 0 times anything
                rest = next(_all(large, plain), None)
                if rest is not None:
                    return combine(way, "*", rest)
    return None


def _splits(cards: tuple[Formula, ...]) -> Iterator[tuple[tuple[Formula, ...], tuple[Formula, ...]]]:
    """Every division in two parts, the first no larger than the second."""
    places = range(len(cards))
    for size in range(1, len(cards) // 2 + 1):
        for chosen in combinations(places, size):
            yield tuple(cards[i] for i in chosen), tuple(cards[i] for i in places if i not in chosen)


def _needed(value: Fraction, target: Fraction) -> Iterator[tuple[Fraction, str, bool]]:
    """The other operand of each operation that makes `target` of `value`, and whether `value` comes first."""
    yield target - value, "+", True
    yield value - target, "-", True
    yield target + value, "-", False
    if value:
        yield target / value, "*", True
        yield target * value, "/", False
        if target:
            yield value / target, "/", True


@lru_cache(maxsize=8192)
def _values_of(cards: tuple[Formula, ...], plain: bool) -> frozenset[Fraction]:
    """The values of all that a few cards can make: the same few come in thousands of deals."""
    return frozenset(made.value for made in _all(cards, plain))


def _all(cards: tuple[Formula, ...], plain: bool) -> Iterator[Formula]:
    """Everything that some cards can make."""
    if len(cards) == 1:
        yield cards[0]
        return
    for small, large in _splits(cards):
        for left in _all(small, plain):
            for right in _all(large, plain):
                for a, b in ((left, right), (right, left)):
                    for operator in "+-*/" if a is left else "-/":
                        if operator == "/" and not b.value:
                            continue
                        made = combine(a, operator, b)
                        if not plain or (made.value > 0 and made.value.denominator == 1):
                            yield made


def combine(left: Formula, operator: str, right: Formula) -> Formula:
    """One operation, with parentheses where they are needed."""
    a, b = left.value, right.value
    value = a + b if operator == "+" else a - b if operator == "-" else a * b if operator == "*" else a / b
    before = f"({left.text})" if operator in "*/" and left.operator in ("+", "-") else left.text
    loose = {"+": (), "-": ("+", "-"), "*": ("+", "-"), "/": ("+", "-", "*", "/")}[operator]
    after = f"({right.text})" if right.operator in loose else right.text
    step = f"{_operand(a)}{operator}{_operand(b)}={value}"
    return Formula(value, f"{before}{operator}{after}", operator, (*left.steps, *right.steps, step))


def _operand(value: Fraction) -> str:
    return str(value) if value >= 0 and value.denominator == 1 else f"({value})"
