"""Answers that are formulas in SMT-LIB: does z3 read them, and do they mean what the right one means.

A formula is one term over declared names. It *compiles* where z3 reads it as a Bool, and it *means the same* where z3
proves it equivalent to the right one. Between the two a formula that says more or less than the right one, and
something at all, is half right. z3 works in a process of its own (`smt_worker`), with limits of memory, of time, and of
its own steps, which are the same on every machine: what it cannot decide within them is not the same. An answer that it
gives no verdict on, for want of time or memory, is not judged: that depends on the machine, and is an error.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards.score import Score, is_right
from posttrain.rewards.workers import Workers

Verdict = Literal[
    "same", "weaker", "stronger", "other", "undecided", "tautology", "contradiction", "malformed", "missing"
]
"""What a formula is beside the right one: it follows from that (`weaker`), or that from it (`stronger`), or neither;
z3 could not say; it holds always or never; it is no formula of the declared names; there is none."""

JUDGED: dict[Verdict, float] = {"same": 1.0, "weaker": 0.5, "stronger": 0.5}
"""The judge's s in [0, 1]; all others are 0. Sheet 44's anchors: 1 identical, 0.3 to 0.6 partial, up to 0.2 wrong."""
COMPILED = ("same", "weaker", "stronger", "other", "undecided", "tautology", "contradiction")

SECONDS = 10.0
"""Wall-clock time of one comparison: a backstop, for z3's own steps end it earlier."""
LONGEST = 4_000
"""Characters of a formula; longer ones are not read."""

_FENCE = re.compile(r"^[ \t]*```\w*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_workers = Workers(Path(__file__).with_name("smt_worker.py"), lambda: [_packages()])


@dataclass(frozen=True)
class Comparison:
    """A verdict, and in one line what z3 found wrong."""

    verdict: Verdict
    cause: str = ""


def formula_text(text: str) -> str:
    """The formula of an answer: what `<answer>` holds, there or in the text the last code fence, else all of it.

    Only what follows the last `</think>` is read.
    """
    text = text.rpartition("</think>")[2]
    if tagged := re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL):
        text = tagged[-1]
    if blocks := _FENCE.findall(text):
        text = blocks[-1]
    return str(text).strip().strip("`").strip()


def single_term(text: str) -> str | None:
    """`text` where it is one SMT-LIB term (of an `(assert ...)` what is asserted), without comments; else None.

    So nothing but a term can reach z3: no command, no end of the one that it is put into.
    """
    text = re.sub(r";[^\n]*", " ", text)
    tokens = re.findall(r"[()]|[^\s()]+", text)
    if not tokens or len(text) > LONGEST or re.search(r"[\"|]", text):
        return None
    depth, ends = 0, 0
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth < 0:
            return None
        ends += depth == 0
    if depth or ends > 1:
        return None
    return " ".join(tokens[2:-1] if tokens[:2] == ["(", "assert"] else tokens)


@lru_cache(maxsize=65_536)
def compare_formulas(candidate: str, gold: str, declarations: str) -> Comparison:
    """What z3 says of one term beside another, `SECONDS` at most.

    Raises `UserError` where it cannot read `gold`, `ConnectionError` where it runs out of time or memory.
    """
    reply = _workers.ask({"declarations": declarations, "gold": gold, "candidate": candidate}, SECONDS)
    if reply["verdict"] == "gold":
        raise UserError(f"z3 cannot read the right formula {gold}: {reply['cause']}")
    return Comparison(reply["verdict"], reply.get("cause", ""))


def gate(compiled: bool, judged: float) -> float:
    """The reward of sheet 44: r = 0 where the formula does not compile, else what the judge gives it, s in [0, 1]."""
    return judged if compiled else 0.0


def score_comparison(found: Comparison, extracted: str) -> Score:
    """The value is `gate(compiled, s)`. `parts`: "compiles" (0 or 1), "judged" (s behind the gate), "correct",
    "format". `info`: "extracted", "reason" (the verdict), "cause"."""
    compiled = found.verdict in COMPILED
    value = gate(compiled, JUDGED.get(found.verdict, 0.0))
    parts = {"correct": float(is_right(value)), "format": float(compiled), "compiles": float(compiled), "judged": value}
    info = {"extracted": extracted or None, "reason": found.verdict}
    return Score(value, parts, {**info, "cause": found.cause} if found.cause else info)


def score_formula(candidate: str, gold: str, declarations: str, extracted: str) -> Score:
    """The score of a term beside the right one; an error where z3 has no verdict."""
    try:
        found = compare_formulas(candidate, gold, declarations)
    except ConnectionError as error:
        return Score(0.0, error=f"z3 did not judge {candidate:.200}: {error}")
    return score_comparison(found, extracted)


def verify_smt(sample: Sample, text: str) -> Score:
    """A task's verifier for answers in SMT-LIB; `sample.meta["declarations"]` declares the names. Linux."""
    written = formula_text(text)
    term = single_term(written)
    gold = single_term(sample.answer or "")
    if gold is None:
        return Score(0.0, error=f"sample {sample.id}: its answer {sample.answer!r} is no term to compare with")
    if term is None:
        return score_comparison(Comparison("malformed" if written else "missing"), written)
    return score_formula(term, gold, str(sample.meta.get("declarations", "")), written)


def _packages() -> str:
    """The folder that z3 is imported from."""
    found = find_spec("z3")
    if found is None or found.origin is None:
        raise UserError("formulas are compared by z3, which is not installed: pip install z3-solver")
    return str(Path(found.origin).parent.parent)
