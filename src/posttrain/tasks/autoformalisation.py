"""`autoformalisation`: an English statement about whole numbers, to be written as a formula.

The smallest relative of what arXiv 2604.13515 does with competition mathematics and Lean: the formula has to compile
(z3 reads it) and to mean the same (z3 proves it equivalent to the right one). No statement holds always or never: names
come once each, and the two conditions of a quantified one leave it open.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from posttrain.data import Sample
from posttrain.rewards import Score
from posttrain.rewards.lean import lean_command, verify_lean
from posttrain.rewards.smt import verify_smt
from posttrain.tasks.answers import answered
from posttrain.tasks.generated import GeneratedTask, Part
from posttrain.tasks.task import Difficulty, tasks

NAMES = "big calm cold fair fast glad"
"""What numbers are called: words that the small base model knows, and has learned to repeat."""
LARGEST = 9

Language = Literal["smt", "lean"]
OPERATORS: dict[Language, dict[str, str]] = {
    "smt": {},
    "lean": {"and": "∧", "or": "∨", "=>": "→", ">=": "≥", "<=": "≤"},
}
ORDERS = (("over", ">"), ("under", "<"), ("at least", ">="), ("at most", "<="))
UP, DOWN = (ORDERS[0], ORDERS[2]), (ORDERS[1], ORDERS[3])


@dataclass(frozen=True)
class Formula:
    """An operator or a quantifier with its parts; without parts a name or a number."""

    head: str
    parts: tuple["Formula", ...] = ()

    def smt(self) -> str:
        """SMT-LIB: `(=> (> big 3) (= calm 4))`."""
        if self.head in ("forall", "exists"):
            return f"({self.head} ((x Int)) {self.parts[0].smt()})"
        return f"({self.head} {' '.join(part.smt() for part in self.parts)})" if self.parts else self.head

    def lean(self) -> str:
        """Lean 4: `((big > 3) → (calm = 4))`."""
        if not self.parts:
            return self.head
        parts = [part.lean() for part in self.parts]
        if self.head in ("forall", "exists"):
            return f"({'∀' if self.head == 'forall' else '∃'} x : Int, {parts[0]})"
        if self.head == "not":
            return f"¬{parts[0]}"
        logical = self.parts[0].head in ("=", "<", ">", "<=", ">=", "and", "or", "=>", "not", "forall", "exists")
        sign = "↔" if self.head == "=" and logical else OPERATORS["lean"].get(self.head, self.head)
        return f"({f' {sign} '.join(parts)})"


@dataclass(frozen=True)
class Statement:
    """A statement in words with its formula; `template`: how it is built, `names`: what it is about."""

    template: str
    text: str
    formula: Formula
    names: tuple[str, ...]


Said = tuple[str, Formula]
"""Words and what they mean."""


def _leaf(value: str | int) -> Formula:
    return Formula(str(value))


def _of(head: str, *parts: Formula) -> Formula:
    return Formula(head, parts)


def _relation(rng: Random, names: list[str]) -> Said:
    """One relation of one or two fresh names: any of them may hold or not, whatever the others do."""
    name = names.pop()
    other = names.pop() if rng.random() < 0.6 else str(rng.randint(2, LARGEST))
    x, y = _leaf(name), _leaf(other)
    kind = rng.randrange(7 if other.isalpha() else 6)
    if kind < 4:
        word, sign = (("more than", ">"), ("less than", "<"), ("at least", ">="), ("at most", "<="))[kind]
        return f"{name} is {word} {other}", _of(sign, x, y)
    if kind == 4:
        return f"{name} is not {other}", _of("not", _of("=", x, y))
    if kind == 5:
        return f"{name} is {other}", _of("=", x, y)
    more = rng.randint(2, LARGEST)
    return f"{name} is {more} more than {other}", _of("=", x, _of("+", y, _leaf(more)))


def _bound(rng: Random, names: list[str], orders: tuple[tuple[str, str], ...], *, named: bool) -> Said:
    """A condition on `x`: `over big`."""
    word, sign = rng.choice(orders)
    value = names.pop() if named else str(rng.randint(2, LARGEST))
    return f"{word} {value}", _of(sign, _leaf("x"), _leaf(value))


def _every(rng: Random, names: list[str]) -> Said:
    """Bounds on the same side: on opposite ones it would never hold."""
    orders, named = rng.choice((UP, DOWN)), rng.random() < 0.5
    first, a = _bound(rng, names, orders, named=True)
    second, b = _bound(rng, names, orders, named=named)
    return f"every number {first} is {second}", _of("forall", _of("=>", a, b))


def _between(rng: Random, names: list[str]) -> tuple[str, Formula]:
    """Bounds on opposite sides: on the same one there is always such a number."""
    sides = rng.choice(((UP, DOWN), (DOWN, UP)))
    named = rng.random() < 0.5
    first, a = _bound(rng, names, sides[0], named=True)
    second, b = _bound(rng, names, sides[1], named=named)
    return f"number {first} is {second}", _of("exists", _of("and", a, b))


def _some(rng: Random, names: list[str]) -> Said:
    text, formula = _between(rng, names)
    return f"some {text}", formula


def _no(rng: Random, names: list[str]) -> Said:
    text, formula = _between(rng, names)
    return f"no {text}", _of("not", formula)


def _joined(pattern: str, meaning: Callable[[Formula, Formula], Formula]) -> Callable[[Random, list[str]], Said]:
    """Two relations in words between them."""

    def drawn(rng: Random, names: list[str]) -> Said:
        (first, a), (second, b) = _relation(rng, names), _relation(rng, names)
        return pattern.format(first, second), meaning(a, b)

    return drawn


def _nested(rng: Random, names: list[str]) -> Said:
    """Three relations."""
    (first, a), (second, b), (third, c) = (_relation(rng, names) for _ in range(3))
    word = rng.choice(("and", "or"))
    if rng.random() < 0.5:
        return f"if {first} {word} {second} then {third}", _of("=>", _of(word, a, b), c)
    return f"if {first} then {second} {word} {third}", _of("=>", a, _of(word, b, c))


def _guarded(rng: Random, names: list[str]) -> Said:
    """A quantified statement under a condition."""
    first, a = _relation(rng, names)
    second, b = rng.choice((_every, _some, _no))(rng, names)
    return f"if {first} then {second}", _of("=>", a, b)


TEMPLATES: dict[Difficulty, dict[str, Callable[[Random, list[str]], Said]]] = {
    "in": {
        "single": _relation,
        "and": _joined("{} and {}", lambda a, b: _of("and", a, b)),
        "or": _joined("{} or {}", lambda a, b: _of("or", a, b)),
        "if": _joined("if {} then {}", lambda a, b: _of("=>", a, b)),
        "only if": _joined("{} only if {}", lambda a, b: _of("=>", a, b)),
        "unless": _joined("{} unless {}", lambda a, b: _of("or", b, a)),
        "exactly if": _joined("{} exactly if {}", lambda a, b: _of("=", a, b)),
        "not both": _joined("not both {} and {}", lambda a, b: _of("not", _of("and", a, b))),
        "every": _every,
        "some": _some,
        "no": _no,
    },
    "harder": {"nested": _nested, "guarded": _guarded},
}


@tasks.register("autoformalisation")
class Autoformalisation(GeneratedTask[Statement]):
    """Write a statement about whole numbers as a formula: 11 kinds of statement (longer ones in `harder`).

    Right is every formula that is equivalent to the statement's own; half right is one that follows from it, or that it
    follows from, and that is neither always nor never true (`rewards.smt`). `Score.parts`: "compiles" and "judged".
    `language`: "smt" (SMT-LIB, read by z3), "lean" (Lean 4, by the command `lean`), or "auto": Lean where that is on
    the PATH, else SMT-LIB, so that the same recipe asks for different formulas on different machines. Style: "direct".
    """

    name = "autoformalisation"
    styles = ("direct",)

    def __init__(self, *, language: Literal["auto", "smt", "lean"] = "auto", part: Part = "any") -> None:
        super().__init__(part=part)
        found: Language = "lean" if lean_command() is not None else "smt"
        self.language: Language = found if language == "auto" else language

    def problem(self, rng: Random, difficulty: Difficulty) -> Statement:
        """Draw a statement; every kind is as likely."""
        template = rng.choice(list(TEMPLATES[difficulty]))
        names = rng.sample(NAMES.split(), len(NAMES.split()))
        left = list(names)
        text, formula = TEMPLATES[difficulty][template](rng, left)
        used = names[len(left) :]
        return Statement(template, f"{text}.", formula, tuple(sorted(used)))

    def prompt(self, problem: Statement) -> str:
        """`Formalise: if big is more than calm then fair is not 7.` (no capital: names have their case)"""
        return f"Formalise: {problem.text}"

    def demonstration(self, problem: Statement, style: str) -> str:
        """The formula."""
        return answered(self.answer(problem))

    def answer(self, problem: Statement) -> str:
        """The formula in the task's language."""
        return problem.formula.smt() if self.language == "smt" else problem.formula.lean()

    def details(self, problem: Statement) -> dict[str, Any]:
        """`declarations`: the names as the language declares them. `template`: the kind of statement."""
        names = problem.names
        declarations = {
            "smt": "".join(f"(declare-const {name} Int)" for name in names),
            "lean": f"({' '.join(names)} : Int)",
        }
        details = {"declarations": declarations[self.language], "template": problem.template}
        return {**details, "language": self.language}

    def verify(self, sample: Sample, answer: str) -> Score:
        """See `rewards.smt`; in Lean, `rewards.lean`."""
        lean = sample.meta.get("language") == "lean"
        return verify_lean(sample, answer) if lean else verify_smt(sample, answer)
