"""First planning steps: of a worked solution only which quantities are joined, by which operation."""

import re
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from posttrain.curation.curation import curations
from posttrain.curation.worked_steps import Reading, WorkedStep, worked_steps
from posttrain.data import Sample, assistant
from posttrain.errors import UserError

Form = Literal["plan", "expression", "plan_expression"]
Which = Literal["first", "random", "last"]

_LISTED = 5
_WORDS = re.compile(r"(?: [^\W\d_][\w'’-]*){1,2}")
_FUNCTION_WORDS = """
a an and are as at be but by each every for from gives had has have he her his how if in is it its less more of off on
or out per puts she so than that the their then there they times to twice was were when which while who with
"""
_NO_NOUNS = frozenset(_FUNCTION_WORDS.split())


@curations.register("first_step")
def first_step(
    samples: list[Sample],
    seed: int,
    *,
    reading: Reading = "marks",
    form: Form = "plan",
    step: Which = "first",
    instruction: str | None = None,
    written: str = "{step}",
    linked: bool = True,
    max_refused: Annotated[float, Field(ge=0, le=1)] = 0.05,
) -> list[Sample]:
    """First-step logical reasoning: train on the first planning step of each solution, and on nothing else.

    Each sample becomes: its question with an `instruction` that asks for one step only; as response, that step, whose
    result is kept out: `use 48 clips and 2; operation divide`. L = -log P(s_1 | p).

    arXiv 2601.03682, by sheet 11. The paper's prompt and annotator are not public: the form of the step and the
    instruction are the sheet's reconstruction. Without an instruction of its own the model would learn to stop after
    one step when it is asked for a whole solution.

    - `reading`: `marks` (GSM8K's `<<48/2=24>>`) or `equations` (`48/2=24`, as the generated tasks write).
    - `form`: `plan` (words), `expression` (`48/2`), or both (`plan_expression`).
    - `step`: controls: the last or a random step instead. The steps before it, with their results, stand in the prompt.
    - `instruction`: the line put behind the question; null: "Give only the first step: ..." ("next" for controls).
    - `written`: how the response says the step. `<think>{step}`, with an empty `instruction` and the transform
      `open_ended`, is the beginning of a whole solution: for models that overlook instructions.
    - `linked`: in plans, a number that stands in the question once takes along the words that follow it there.

    A solution without a readable step is left out. More than the share `max_refused` of these raises `UserError` that
    counts them and lists the first; nothing else is put in their place.
    """
    if "{step}" not in written:
        raise UserError(f"curation 'first_step', option 'written': {written!r} has no place for the {{step}}")
    asked = _instruction(step, form) if instruction is None else instruction
    kept, refused = [], []
    for sample in samples:
        steps = worked_steps(sample.response_text, reading)
        if steps:
            place = _place(sample, seed, len(steps), step)
            text = written.replace("{step}", _text(steps[place], form, sample.prompt_text if linked else ""))
            kept.append(_reduced(sample, steps, place, text, asked))
        else:
            refused.append(sample)
    if len(refused) > max_refused * len(samples):
        raise UserError(_refusal(refused, len(samples), reading, max_refused))
    return kept


def plan(step: WorkedStep, question: str = "") -> str:
    """`use 48 clips and 2; operation divide`: a step in words; numbers are linked to `question`."""
    once = {operand: _linked(operand, question) for operand in step.operands if step.operands.count(operand) == 1}
    *most, last = (once.get(operand, operand) for operand in step.operands)
    several = "s" if len(step.operations) > 1 else ""
    return f"use {', '.join(most)} and {last}; operation{several} {', '.join(step.operations)}"


def _text(step: WorkedStep, form: Form, question: str) -> str:
    words = plan(step, question)
    return {"plan": words, "expression": step.expression, "plan_expression": f"{words}: {step.expression}"}[form]


def _reduced(sample: Sample, steps: list[WorkedStep], place: int, text: str, instruction: str) -> Sample:
    question = sample.prompt[-1]
    done = [f"{before.expression}={before.value}" for before in steps[:place]]
    asked = {**question, "content": "\n".join(line for line in (sample.prompt_text, *done, instruction) if line)}
    meta = {**sample.meta, "source_id": sample.id, "step": place + 1, "steps": len(steps)}
    return replace(
        sample,
        prompt=(*sample.prompt[:-1], asked),
        response=(assistant(text),),
        rejected=(),
        answer=None,  # one step answers no question: such a sample cannot be scored
        meta=meta,
    )


def _place(sample: Sample, seed: int, steps: int, which: Which) -> int:
    if which == "random":  # by the sample's id: the order of the rows does not matter
        return int(np.random.default_rng([seed, int(sample.id, 16)]).integers(steps))
    return 0 if which == "first" else steps - 1


def _instruction(step: Which, form: Form) -> str:
    what = "the expression alone" if form == "expression" else "which quantities to use, and which operation"
    return f"Give only the {'first' if step == 'first' else 'next'} step: {what}."


def _linked(number: str, question: str) -> str:
    """A number with up to two words that follow it in the question, where it stands there once."""
    places = [match.end() for match in re.finditer(r"\d+(?:[.,]\d+)*", question) if _same(match[0], number)]
    words = _WORDS.match(question, places[0]) if len(places) == 1 else None
    named = [number]
    for word in words[0].split() if words else ():
        if word.lower() in _NO_NOUNS:
            break
        named.append(word)
    return " ".join(named)


def _same(a: str, b: str) -> bool:
    return a.replace(",", "") == b.replace(",", "")


def _refusal(refused: list[Sample], count: int, reading: Reading, allowed: float) -> str:
    looked_for = "calculator marks such as <<48/2=24>>" if reading == "marks" else "equations such as 48/2=24"
    other = "equations" if reading == "marks" else "marks"
    lines = [
        f"curation 'first_step': {len(refused)} of {count} solutions ({len(refused) / count:.1%}) show no step in the "
        f"form of {looked_for}; allowed are {allowed:.1%} (max_refused). Try reading: {other}, or let someone "
        "write the first steps and train on these as they are"
    ]
    for sample in refused[:_LISTED]:
        where = ", ".join(f"{key} {sample.meta[key]}" for key in ("source", "row", "line") if key in sample.meta)
        lines.append(f"  {sample.id}{f' ({where})' if where else ''}: {sample.response_text[:80]!r}")
    return "\n".join(lines)
