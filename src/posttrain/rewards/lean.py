"""Answers that are propositions in Lean 4: does `lean` accept them, and prove them equivalent to the right one?

Written against the command line of Lean 4 (`lean --stdin`, exit code 0 where nothing is wrong) and tried with a
stand-in for it: it was never run with Lean itself. Lean runs code while it reads, so that nothing but the plain
notation of a first-order formula over the declared names reaches it.
"""

import re
import shutil
import subprocess
import tempfile
from functools import lru_cache

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards.score import Score
from posttrain.rewards.smt import LONGEST, Comparison, Verdict, formula_text, score_comparison

SECONDS = 60.0
MEMORY_MEGABYTES = 4096
HEARTBEATS = 400
"""Lean's own count of work, in thousands: the same on every machine."""

_TOKEN = re.compile(r"\s+|\d+|[A-Za-z_][\w']*|[∀∃∧∨¬→↔≠≤≥<>=+\-*(),:]")
_BOUND = re.compile(r"[∀∃]\s*\(?\s*((?:[A-Za-z]\w*\s+)*[A-Za-z]\w*)\s*(?=[:,])")
_KNOWN = frozenset({"Int", "Nat", "True", "False"})
_PROOFS = "first | exact Iff.rfl | omega | grind | (constructor <;> intros <;> first | assumption | omega | grind)"


def lean_command() -> str | None:
    """Where `lean` is on the PATH."""
    return shutil.which("lean")


def is_plain(text: str, binders: str) -> bool:
    """Is `text` a formula's notation, with no word but the declared ones, bound ones, Int, Nat, True and False?"""
    if len(text) > LONGEST or _TOKEN.sub("", text):
        return False
    bound = {name for names in _BOUND.findall(text) for name in names.split()}
    declared = set(re.findall(r"[A-Za-z_]\w*", binders))
    words = set(re.findall(r"[A-Za-z_][\w']*", text))
    return all(len(name) == 1 for name in bound) and words <= bound | declared | _KNOWN


@lru_cache(maxsize=65_536)
def compare_propositions(candidate: str, gold: str, binders: str, command: str) -> Comparison:
    """What Lean says of one proposition beside another; it proves or it does not, and finds no counterexample.

    Raises `UserError` where it cannot read `gold`, `TimeoutError` where it takes more than `SECONDS`.
    """
    if not is_plain(candidate, binders):
        return Comparison("malformed", "no plain formula over the declared names")
    if (wrong := _run(command, f"example {binders} : Prop := ({candidate})")) is not None:
        if (cause := _run(command, f"example {binders} : Prop := ({gold})")) is not None:
            raise UserError(f"Lean cannot read the right proposition {gold}: {cause}")
        return Comparison("malformed", wrong)
    asked: dict[Verdict, str] = {
        "same": f"({candidate}) ↔ ({gold})",
        "tautology": f"({candidate}) ↔ True",
        "contradiction": f"({candidate}) ↔ False",
        "weaker": f"({gold}) → ({candidate})",
        "stronger": f"({candidate}) → ({gold})",
    }
    for verdict, claim in asked.items():
        if _run(command, f"example {binders} : {claim} := by {_PROOFS}") is None:
            return Comparison(verdict)
    return Comparison("undecided")


def verify_lean(sample: Sample, text: str) -> Score:
    """A task's verifier for answers in Lean 4; `sample.meta["declarations"]` are their binders, `(m n : Int)`."""
    command = lean_command()
    if command is None:
        return Score(
            0.0, error="the command 'lean' is not on the PATH: install Lean 4, or set the task's language: smt"
        )
    written = formula_text(text)
    if not written:
        return score_comparison(Comparison("missing"), written)
    binders = str(sample.meta.get("declarations", ""))
    try:
        found = compare_propositions(written, sample.answer or "", binders, command)
    except TimeoutError as error:
        return Score(0.0, error=f"Lean did not judge {written:.200}: {error}")
    return score_comparison(found, written)


def _run(command: str, source: str) -> str | None:
    """What Lean has against `source`, in one line; None where it accepts it."""
    limits = ["--memory", str(MEMORY_MEGABYTES), "--timeout", str(HEARTBEATS)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [command, *limits, "--stdin"],
                input=source,
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=SECONDS,
                cwd=folder,
            )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no reply within {SECONDS:g} s") from None
    return None if done.returncode == 0 else " ".join((done.stdout + done.stderr).split())[:300]
