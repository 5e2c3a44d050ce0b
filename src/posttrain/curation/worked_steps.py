"""The calculations that a worked solution shows, read without guessing."""

import re
from dataclasses import dataclass
from typing import Literal

Reading = Literal["marks", "equations"]

OPERATIONS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}

_SPELLINGS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-"})
_TIMES = re.compile(r"(?<=[\d)]) ?[xX] ?(?=[\d.(])")
_MARK = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
_NUMBER = r"(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
_EQUATION = re.compile(
    rf"(?<![\w.,)*/+-])(?<![-+*/] )([-(]*{_NUMBER}(?: ?[-+*/] ?[-(]*{_NUMBER}\)*)+) ?= ?[$€£]?(-?{_NUMBER})(?!\w)"
)
_TOKEN = re.compile(rf"\s*({_NUMBER}|[-+*/()])")


@dataclass(frozen=True)
class WorkedStep:
    """One calculation: `operands` as written, the `operations` between them in this order, and what came out.

    `expression` is the whole left side without spaces (parentheses included), `value` the right one.
    """

    operands: tuple[str, ...]
    operations: tuple[str, ...]
    expression: str
    value: str


def worked_steps(solution: str, reading: Reading) -> list[WorkedStep]:
    """The calculations of a solution, in their order; none where it shows none in this form.

    `marks`: GSM8K's calculator marks, `<<48/2=24>>`. `equations`: `48/2=24`, in a line of its own or in a sentence; a
    solution where another equals sign stands (`2x=8`) gives none, because its first step may be the one that cannot be
    read. A mark without an operation (`<<5=5>>`) is no step.
    """
    text = _TIMES.sub("*", solution.translate(_SPELLINGS))
    pattern = _MARK if reading == "marks" else _EQUATION
    if reading == "equations" and "=" in pattern.sub("", text):
        return []
    found = pattern.findall(text)
    return [step for step in (_step(left, right) for left, right in found) if step is not None]


def _step(left: str, value: str) -> WorkedStep | None:
    """A minus that follows nothing, an operator or a parenthesis is a number's sign, not an operation."""
    operands: list[str] = []
    operations: list[str] = []
    place, sign = 0, ""
    stripped = left.strip()
    while place < len(stripped):
        match = _TOKEN.match(stripped, place)
        if match is None:
            return None
        token, place = match[1], match.end()
        if token in "()":
            continue
        if token not in OPERATIONS:
            operands.append(sign + token)
            sign = ""
        elif len(operands) > len(operations):
            operations.append(OPERATIONS[token])
        elif token == "-" and not sign:
            sign = token
        else:
            return None
    if not operations or len(operands) != len(operations) + 1:
        return None
    return WorkedStep(tuple(operands), tuple(operations), stripped.replace(" ", ""), value.strip())
