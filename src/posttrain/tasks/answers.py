r"""Finding the final answer in a text, and comparing it with the right one.

A number is right if it is the same number, however it is spelled. It has to be a number, though: where the right
answer is 14, `7*2` and `28/2` are the same number for `same_number` but wrong for `verify_number`, since whoever
repeats the question has not answered it.
"""

import logging
import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from posttrain.data import Sample
from posttrain.rewards import Score
from posttrain.tasks.spelling import braced, same_text, unwrapped

Reason = Literal["found", "missing", "several", "malformed"]


@dataclass(frozen=True)
class Extraction:
    """The final answer of a text: `value` is None unless `reason` is "found". `count`: how often it was written."""

    value: str | None
    reason: Reason
    count: int = 0


def answered(value: str) -> str:
    """The text of a final answer in the format of the generated tasks."""
    return f"<answer>{value}</answer>"


def worked(thoughts: str, value: str) -> str:
    """The text of a final answer with the work before it in the format of the generated tasks."""
    return f"<think>{thoughts}</think><answer>{value}</answer>"


def extract_answer(text: str) -> Extraction:
    r"""Find `<answer>x</answer>`, else `#### x` (to the end of its line) or `\boxed{x}`.

    Only what follows the last `</think>` is read, where there is one. Where both of the latter formats occur, the one
    that comes last decides: `####` before a box is a heading in Markdown. The same answer written twice is "found";
    different ones are "several"; an unclosed, unopened, nested or empty one is "malformed"; none is "missing".
    """
    text = text.rpartition("</think>")[2]
    opened, closed = text.count("<answer>"), text.count("</answer")
    if opened or closed:
        values = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        sound = opened == closed == len(values)
    elif text.rfind("####") > text.rfind(r"\boxed{"):
        values = re.findall(r"(?<!#)####(?!#)[ \t]*(.*)", text)
        sound = True
    elif r"\boxed{" in text:
        found = [braced(text, match.end()) for match in re.finditer(r"\\boxed\{", text)]
        values = [value for value in found if value is not None]
        sound = len(values) == len(found)
    else:
        return Extraction(None, "missing")
    values = [value.strip() for value in values]
    if not sound or not values or not all(values):
        return Extraction(None, "malformed", len(values))
    if any(_differ(values[0], value) for value in values[1:]):
        return Extraction(None, "several", len(values))
    return Extraction(values[0], "found", len(values))


def _differ(a: str, b: str) -> bool:
    if same_text(a, b):
        return False
    number = plain_number(a)
    return number is None or number != plain_number(b)


@dataclass(frozen=True)
class PlainNumber:
    """A number that is written out. `percent`: `value` is what stood before a percent sign, divided by 100."""

    value: Fraction
    percent: bool = False


_DIGITS = r"(?:\d{1,3}(?:[, '_]\d{3})+|\d+)"
_UNITS = r" ?(?:°[CF]?|[kcm]m|kg|mg|ml|km/h|mph|m/s)(?:\^\{?[23]\}?)?| [mghsL](?:\^\{?[23]\}?)?"
_PLAIN = re.compile(
    r"(?P<sign>[+-]?) ?[$€£¥]? ?(?P<inner>[+-]?)"
    rf"(?:(?P<whole>\d+) +(?P<mixed>\d+/\d+)|(?P<over>{_DIGITS}(?:\.\d+)?) ?/ ?(?P<under>{_DIGITS}(?:\.\d+)?)"
    rf"|(?P<decimal>{_DIGITS}?(?:\.\d*)?(?:[eE][+-]?\d{{1,3}})?))"
    rf"(?P<unit> ?%| ?[€£¥]|{_UNITS}|(?: [^\W\d_]{{2,}}){{1,4}})?\.?"
)
_MULTIPLES = {"percent": Fraction(1, 100), "dozen": Fraction(12), "hundred": Fraction(100), "thousand": Fraction(10**3)}
_MULTIPLES |= {"million": Fraction(10**6), "billion": Fraction(10**9), "trillion": Fraction(10**12)}
_CHANGES = """
pi and or half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths eighth eighths tenth tenths
hundredth hundredths point to plus minus times mod over sqrt squared cubed factorial is was not no wait wrong but if
"""
_NO_UNITS = frozenset(_CHANGES.split())
"""Words behind a number that change it or call it in question."""
_SPELLINGS = str.maketrans({"−": "-", "–": "-", "‐": "-", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "×": "*"})
_SPELLINGS |= str.maketrans({"⁄": "/", "’": "'"})
_LATEX = [
    (re.compile(r"\\(?:left|right|displaystyle|!|,|;|:)|\\[()\[\]]"), ""),
    (re.compile(r"\\text(?:bf|rm|it)?\{([^{}]*)\}|\\math(?:rm|bf)\{([^{}]*)\}"), r" \1\2"),
    (re.compile(r"\\(?=[%$ ])"), ""),
]
_FRACTION = re.compile(
    r"(?P<whole>[+-]?\d*) ?\\[dt]?frac ?(?:\{(-?[\d.]+)\} ?\{([\d.]+)\}|(\d)(\d))(?= ?%?\.?$)"
)  # only where nothing else stands beside it: it binds tighter than a slash
_SCIENTIFIC = re.compile(
    r"(?:(?<=\d) ?(?:\*|x|\\times|\\cdot) ?|^([+-]?))10(?:\^|\*\*)(?:\{([+-]?\d{1,3})\}|([+-]?\d{1,3}))"
)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_ONE_SIGN = re.compile("(\\d?)([¼½¾⅐-⅞])")


def _clean(text: str) -> str:
    """`text` without the marks around a number: maths mode, `\\text`, spacing, `x =`."""
    text = unwrapped(text.translate(_SPELLINGS).replace("{,}", ","))
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda m: "^" + unicodedata.normalize("NFKC", m[0]), text)
        text = _ONE_SIGN.sub(lambda m: f"{m[1]} {unicodedata.normalize('NFKC', m[2])}", text).translate(_SPELLINGS)
    if "\\" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
        text = text.strip()
    if "$" in text:
        text = re.sub(r"^\$+(.*?)\$+$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"^[(\[]([^()\[\]]*)[)\]]$", r"\1", re.sub(r"^(?:minus|negative) (?=\d)", "-", text))
    if "=" in text:
        text = re.sub(r"^(?:[a-zA-Z] ?)?= ?(?=[^=]*$)", "", text)
    if "frac" in text and (match := _FRACTION.match(text)):
        text = match.expand(r"\1 \2\4/\3\5") + text[match.end() :]
    if "10" in text:
        text = _SCIENTIFIC.sub(lambda m: f"{'' if m[1] is None else m[1] + '1'}e{m[2] or m[3]}", text)
    return re.sub(r"\s+", " ", text).strip()


def plain_number(text: str) -> PlainNumber | None:
    r"""Read a number that is written out, exactly; None for anything else, expressions included.

    Signs, thousands separators (comma or space), decimals, exponents, `1/2`, `1 1/2`, `50%`, a currency sign, one unit
    word (`14 apples`), `million` and its kin, and the LaTeX of all these.
    """
    if len(text) > 400:
        return None
    match = _PLAIN.fullmatch(_clean(text))
    if match is None or (match["sign"] and match["inner"]):
        return None
    unit, *others = (match["unit"] or "").lower().split() or [""]
    if unit in _NO_UNITS or not _NO_UNITS.union(_MULTIPLES).isdisjoint(others):
        return None
    try:
        if match["mixed"]:
            value = int(match["whole"]) + Fraction(match["mixed"])
        elif match["over"]:
            value = _exact(match["over"]) / _exact(match["under"])
        else:
            value = _exact(match["decimal"])
    except (ValueError, ZeroDivisionError):
        return None
    percent = unit in ("%", "percent")
    value *= Fraction(1, 100) if percent else _MULTIPLES.get(unit, 1)
    return PlainNumber(-value if "-" in (match["sign"], match["inner"]) else value, percent)


def _exact(digits: str) -> Fraction:
    return Fraction(re.sub("[, '_]", "", digits))


def _same_plain(a: PlainNumber, b: PlainNumber) -> bool:
    """Equal, or equal but for a percent sign that one of them has: questions that ask "what percent" want `50`."""
    if a.value == b.value or a.percent == b.percent:
        return a.value == b.value
    marked, bare = (a, b) if a.percent else (b, a)
    return marked.value * 100 == bare.value


def same_number(a: str, b: str) -> bool:
    r"""Whether two texts are the same number in any spelling.

    Numbers that are written out are compared exactly (`plain_number`); `50%` is 0.5, and also 50. What is left of LaTeX
    and arithmetic expressions (`\sqrt{49}`, `3+4`) goes to math-verify. Texts with words, several numbers, equations
    or absurd exponents are no numbers.
    """
    first, second = plain_number(a), plain_number(b)
    if first is not None and second is not None:
        return _same_plain(first, second)
    return _same_expression(a, b)


_EXPRESSION = re.compile(r"(?:[\d.+\-*/()^{}\s]|\\(?:frac|dfrac|tfrac|sqrt|cdot|times|div|pi|log|ln)(?![a-zA-Z]))+")
_EXPONENT = re.compile(r"\^\{-?(\d{1,3})(?:[./]\d{1,3})?\}")


def _latex(text: str) -> str | None:
    """An arithmetic expression as LaTeX, or None where it is none or could take for ever to work out."""
    text = re.sub(r"√(\d+)|(?<![a-z\\])sqrt\(([^()]*)\)", r"\\sqrt{\1\2}", _clean(text))
    text = re.sub(r"(?<![a-z\\])pi(?![a-z])|π", r"\\pi ", text)
    text = re.sub(r"\^(-?\d+)", r"^{\1}", text.replace("**", "^").replace("÷", "/"))
    exponents = [int(exponent) for exponent in _EXPONENT.findall(text)]
    if len(text) > 200 or len(exponents) != text.count("^") or not _EXPRESSION.fullmatch(text):
        return None
    if re.search(r"\d \d", text):  # two numbers: LaTeX would multiply them
        return None
    size = 1
    for exponent in exponents:
        size *= max(exponent, 1)
    return f"${text}$" if size <= 1000 and re.search(r"\d|\\pi", text) else None


@lru_cache(maxsize=1024)
def _same_expression(a: str, b: str) -> bool:
    first, second = _latex(a), _latex(b)
    if first is None or second is None:
        return False
    import math_verify  # slow to import (sympy), and most answers are plain numbers

    # Its time limits are signals, which threads cannot set; `_latex` lets only quick expressions through, so they are
    # switched off, and so is its warning about that.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold, found = (math_verify.parse(text, parsing_timeout=None) for text in (first, second))
    return bool(math_verify.verify(gold, found, timeout_seconds=None))


def canonical(answer: str) -> str:
    """One spelling for all spellings of a written-out number (`14`, `14.0`, `$14`); else without spaces and case."""
    number = plain_number(answer)
    if number is None:
        return "".join(unwrapped(answer).split()).casefold()
    return f"{number.value * 100}%" if number.percent else str(number.value)


def _is_right_number(right: str, found: str) -> tuple[bool, str]:
    """Whether `found` answers the question whose answer is `right`, and why (not)."""
    wanted = plain_number(right)
    if wanted is None:
        same = same_number(right, found)
        return same, "found" if same else "wrong"
    number = plain_number(found)
    if number is None and "=" in found:
        found = _end_of_equation(found)
        number = plain_number(found)
    undivided = number is not None and number.value.denominator == 1 and re.search(r"\d\s*/|frac", found) is not None
    if number is None or undivided:
        return False, "not_a_number"
    same = _same_plain(wanted, number)
    return same, "found" if same else "wrong"


def _end_of_equation(text: str) -> str:
    """`36` of `12*3=36`, where both sides are the same; else the text as it is."""
    sides = unwrapped(text).split("=")
    return sides[-1] if all(same_number(side, sides[-1]) for side in sides) else text


def score_answer(extraction: Extraction, right: bool, reason: str, **info: Any) -> Score:
    """The score that every verifier here gives: parts `correct` and `format`; info `extracted`, `reason` and `info`.

    `info["canonical"]` is the answer in one spelling, for those who count answers, where it is not the extracted one.
    `format` is 1 if the text has exactly one well-formed answer, right or wrong.
    """
    value = float(right)
    well_formed = float(extraction.reason == "found" and extraction.count == 1)
    found = {"extracted": extraction.value, "reason": reason, **info}
    if extraction.value is not None and (spelled := canonical(extraction.value)) != extraction.value:
        found["canonical"] = spelled
    return Score(value, parts={"correct": value, "format": well_formed}, info=found)


def _incomparable(sample: Sample, extraction: Extraction) -> Score:
    """No value, but what was answered: votes need no more."""
    score = score_answer(extraction, False, "no_answer_to_compare_with")
    return replace(score, error=f"sample {sample.id} has no answer to compare with")


def verify_number(sample: Sample, answer: str) -> Score:
    """1 if the text's one final answer is the number `sample.answer`, else 0.

    `info["reason"]`: "found" (right), "wrong", "not_a_number" (words, or a calculation left to the reader), "missing",
    "several" or "malformed". A sample without an answer gives an error, not a 0.
    """
    extraction = extract_answer(answer)
    if sample.answer is None:
        return _incomparable(sample, extraction)
    if extraction.value is None:
        return score_answer(extraction, False, extraction.reason)
    return score_answer(extraction, *_is_right_number(sample.answer, extraction.value))


def verify_thought(sample: Sample, answer: str) -> Score:
    """As `verify_number`, by the last answer before `</think>`: for answers drawn to there (arXiv 2507.08267)."""
    thought = answer.partition("</think>")[0]
    last = max(thought.rfind(opening) for opening in ("<answer>", r"\boxed{", "####"))
    return verify_number(sample, thought[max(0, last) :])


def verify_exact(sample: Sample, answer: str) -> Score:
    """1 if the text's one final answer is `sample.answer`, case and whitespace aside, else 0. Otherwise as numbers."""
    extraction = extract_answer(answer)
    if sample.answer is None:
        return _incomparable(sample, extraction)
    if extraction.value is None:
        return score_answer(extraction, False, extraction.reason)
    right = same_text(sample.answer, extraction.value)
    return score_answer(extraction, right, "found" if right else "wrong")
