"""Answers that are Python programs: run, and what they return compared with the right number.

Programs as rationales of word problems ("P-CoT"): ReFT (arXiv 2401.08967), after program-of-thoughts prompting.
"""

import math
import re
import textwrap
from collections.abc import Sequence as List
from dataclasses import dataclass

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards.attempt import Ask, Attempt
from posttrain.rewards.reward import model_reward
from posttrain.rewards.sandbox import Failure, Limits, Outcome, run_python_many
from posttrain.rewards.score import Score

_FENCE = re.compile(r"^[ \t]*```(\w*)", re.MULTILINE)
_BLOCK = re.compile(r"^[ \t]*```(?:python|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Execution:
    """What a program returned, or None and the `cause`: the kind of failure, and a line that explains it."""

    value: float | None
    failure: Failure | None = None
    cause: str = ""


def program_text(text: str, *, header: str = "", function: str = "solution") -> str:
    """The program of an answer: what its last code fence holds, or all of it; behind `header` where that is missing.

    `header`: what the prompt ends in and the answer goes on from (`def solution():`), so that a fence of the answer
    closes what the prompt opened. Only what follows the last `</think>` is read.
    """
    text = text.rpartition("</think>")[2]
    fence = _FENCE.search(text)
    if header and fence and not fence[1] and text[: fence.start()].strip():
        text = text[: fence.start()]
    elif blocks := _BLOCK.findall(text):
        text = textwrap.dedent(blocks[-1])
    if not header or re.search(rf"^def {re.escape(function)}\(", text, re.MULTILINE):
        return text
    return f"{header}{text}" if header[-1].isspace() or text[:1] == "\n" else f"{header}\n{text}"


def execute_programs(texts: List[str], *, function: str = "solution", time_limit: float = 10.0) -> list[Execution]:
    """Call `function` of each program, `time_limit` seconds at most; its result has to be a number, or to become one.

    Whatever a program does is a cause, never an exception. The code of the paper takes 10 s as well.
    """
    if not function.isidentifier():
        raise UserError(f"function '{function}' is no name of a Python function")
    outcomes = run_python_many(texts, Limits(seconds=time_limit), result=f"float({function}())")
    return [_execution(outcome) for outcome in outcomes]


def execute_program(text: str, *, function: str = "solution", time_limit: float = 10.0) -> Execution:
    """`execute_programs` of one."""
    return execute_programs([text], function=function, time_limit=time_limit)[0]


def score_program(sample: Sample, found: Execution, *, tolerance: float = 0.01, partial: float = 0.0) -> Score:
    """1 where |returned - `sample.answer`| <= `tolerance`, `partial` where another number came out, else 0.

    `parts`: "correct", "format" (a number came out). `info`: "extracted" (that number), "reason" ("found", "wrong", or
    the kind of failure), "cause". ReFT: tolerance 0.01, partial 0.1. A program that could not be run is an error.
    """
    if found.failure == "broken":
        return Score(0.0, error=found.cause)
    try:
        gold = float((sample.answer or "").replace(",", ""))
    except ValueError:
        return Score(0.0, error=f"sample {sample.id}: answer {sample.answer!r} is no number to compare with")
    if found.value is None:
        return Score(0.0, {"correct": 0.0, "format": 0.0}, {"reason": found.failure, "cause": found.cause})
    # A hair more than the tolerance: 18.01 - 18 is 0.010000000000001563.
    right = abs(found.value - gold) <= tolerance * (1 + 1e-9) + 4 * math.ulp(gold)
    parts = {"correct": float(right), "format": 1.0}
    info = {"extracted": f"{found.value:.12g}", "reason": "found" if right else "wrong"}
    return Score(1.0 if right else partial, parts, info)


def verify_program(
    sample: Sample, text: str, *, header: str = "", function: str = "solution", time_limit: float = 10.0
) -> Score:
    """A task's verifier for answers that are programs: 1 or 0."""
    program = program_text(text, header=header, function=function)
    return score_program(sample, execute_program(program, function=function, time_limit=time_limit))


@model_reward("program")
def program(
    attempts: List[Attempt],
    ask: Ask,
    *,
    header: str = "",
    function: str = "solution",
    tolerance: float = 0.01,
    partial: float = 0.0,
    time_limit: float = 10.0,
) -> list[Score]:
    """1 for a program whose `function` returns the sample's answer (`score_program`); a round's run side by side.

    `header`: what the prompt gives of the program. `time_limit`: seconds of each. See `sandbox` for its isolation.
    """
    texts = [program_text(attempt.text, header=header, function=function) for attempt in attempts]
    found = execute_programs(texts, function=function, time_limit=time_limit)
    return [
        score_program(attempt.sample, one, tolerance=tolerance, partial=partial)
        for attempt, one in zip(attempts, found, strict=True)
    ]


def _execution(outcome: Outcome) -> Execution:
    if outcome.failure is not None:
        return Execution(None, outcome.failure, outcome.error)
    value = outcome.value
    if not isinstance(value, float) or not math.isfinite(value):
        return Execution(None, "error", f"the result is {value!r:.60}")
    return Execution(value)
