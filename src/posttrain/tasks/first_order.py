"""First-order formulas as books write them, `∀x (Drinks(x) → ¬Unaware(rina))`, and as SMT-LIB."""

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(r"\s*(?:([∀∃¬∧∨⊕→↔(),])|([^\W_][\w’'+.-]*))")
_SPELLINGS = {"⟷": "↔", "<->": "↔", "<=>": "↔", "->": "→", "=>": "→", "&": "∧", "~": "¬"}
_LEVELS = (("↔", "="), ("→", "=>"), ("⊕", "xor"), ("∨", "or"), ("∧", "and"))
"""From the loosest to the tightest: sign and SMT-LIB."""
_VARIABLES = frozenset("uvwxyz")


@dataclass
class FirstOrder:
    """A formula as one SMT-LIB term over things, the arities of its predicates, and its constants."""

    term: str = ""
    predicates: dict[str, set[int]] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)

    def declarations(self) -> str:
        """SMT-LIB that declares all names."""
        lines = ["(declare-sort Thing 0)"]
        for name, arities in sorted(self.predicates.items()):
            lines += [f"(declare-fun |{name}| ({' '.join(['Thing'] * arity)}) Bool)" for arity in sorted(arities)]
        return "".join([*lines, *(f"(declare-const |{name}| Thing)" for name in sorted(self.constants))])

    def vocabulary(self) -> str:
        """`Dependent(x), Moves(x, y); rina`: the names for a reader."""
        arguments = {arity: f"({', '.join('xyzuvw'[:arity])})" for arity in range(1, 7)}
        predicates = [f"{n}{arguments.get(a, '')}" for n, arities in sorted(self.predicates.items()) for a in arities]
        return "; ".join(", ".join(names) for names in (predicates, sorted(self.constants)) if names)


def read_formula(text: str) -> FirstOrder:
    """Read a formula with ∀ ∃ ¬ ∧ ∨ ⊕ → ↔; a quantifier and a negation take what stands next to them.

    → is read from the right, the others from the left. Raises `ValueError` that says what is wrong.
    """
    for spelling, sign in _SPELLINGS.items():
        text = text.replace(spelling, sign)
    text = text.strip().rstrip(".").rstrip()
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at]!r} is no sign of a formula")
        tokens.append(match[1] or match[2].rstrip("."))
        at = match.end()
    reader = _Reader(tokens)
    reader.found.term = reader.level(0, frozenset())
    if reader.at < len(tokens):
        raise ValueError(f"{tokens[reader.at]!r} stands where the formula should end")
    return reader.found


class _Reader:
    """Recursive descent: one method for the signs between formulas, one for what they stand between."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.found = tokens, 0, FirstOrder()

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else "the end"

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if wanted and token != wanted:
            raise ValueError(f"{token!r} stands where {wanted!r} should")
        self.at += 1
        return token

    def level(self, depth: int, bound: frozenset[str]) -> str:
        if depth == len(_LEVELS):
            return self.unary(bound)
        sign, name = _LEVELS[depth]
        left = self.level(depth + 1, bound)
        while self.peek() == sign:
            self.take()
            right = self.level(depth if sign == "→" else depth + 1, bound)
            left = f"({name} {left} {right})"
        return left

    def unary(self, bound: frozenset[str]) -> str:
        token = self.take()
        if token == "¬":
            return f"(not {self.unary(bound)})"
        if token in "∀∃":
            variable = self.word()
            scope = self.unary(bound | {variable})
            return f"({'forall' if token == '∀' else 'exists'} ((|{variable}| Thing)) {scope})"
        if token == "(":
            inner = self.level(0, bound)
            self.take(")")
            return inner
        self.at -= 1
        return self.atom(self.word(), bound)

    def atom(self, name: str, bound: frozenset[str]) -> str:
        arguments: list[str] = []
        if self.peek() == "(":
            while self.take() in "(,":
                arguments.append(self.word())
            self.at -= 1
            self.take(")")
        for argument in arguments:
            if argument in _VARIABLES - bound:
                raise ValueError(f"the variable {argument!r} is not bound")
        self.found.constants |= set(arguments) - bound
        self.found.predicates.setdefault(name, set()).add(len(arguments))
        return f"(|{name}| {' '.join(f'|{argument}|' for argument in arguments)})" if arguments else f"|{name}|"

    def word(self) -> str:
        token = self.take()
        if not token[0].isalnum() or token == "the end":
            raise ValueError(f"{token!r} stands where a name should")
        return token
