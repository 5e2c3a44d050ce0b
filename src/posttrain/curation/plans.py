"""Data of plans and executions (explore and execute, arXiv 2509.23946), made by asking a model again and again."""

import re
from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from posttrain.curation.curation import curations
from posttrain.data import Sample, assistant
from posttrain.errors import UserError, nearest
from posttrain.rewards.plan_adherence import MARKS, Titles, adherence, plan_and_execution, read_titles

Share = Annotated[float, Field(ge=0, le=1)]

_PLACE = re.compile(r"\{(\w+)\}")


@curations.register("compose")
def compose(
    samples: list[Sample],
    seed: int,
    *,
    prompt: str | None = None,
    response: str | None = None,
    note: dict[str, str] | None = None,
) -> list[Sample]:
    """Write each sample's last prompt turn and its response anew, from its own texts and notes.

    In `prompt`, `response` and the texts of `note`, `{prompt}` and `{response}` stand for what they were, and `{name}`
    for `meta["name"]`; all are filled with what was there before, and `note` then writes into `meta`, which
    goes with a question through the stages that answer it. What is left out stays; a response of "" is none.

    So a question becomes one about its answer, and an answer part of another question: solve, summarise, solve again
    by the summary (see the recipe e2c-data). Raises `UserError` for a name that a sample does not have.
    """
    return [_composed(sample, prompt, response, note or {}) for sample in samples]


@curations.register("adherent")
def adherent(
    samples: list[Sample],
    seed: int,
    *,
    marks: List[str] = MARKS,
    titles: Titles = "anchored",
    threshold: Share = 0.3,
    at_least: Share = 1.0,
) -> list[Sample]:
    """Keep responses whose execution adheres to their plan, as the reward `plan_adherence` says it: `at_least` so much.

    The paper keeps executions that follow their plans; by what measure it does not say where we could read it.
    """

    def share(sample: Sample) -> float:
        plan, execution = plan_and_execution(sample.response_text, marks)
        return adherence(read_titles(plan, titles), read_titles(execution, titles), threshold)

    return [sample for sample in samples if share(sample) >= at_least]


@curations.register("cut_behind")
def cut_behind(samples: list[Sample], seed: int, *, mark: str) -> list[Sample]:
    """End each response behind the first `mark` in it: beginnings to be learned, with the transform `open_ended`.

    Of explore and execute, with the mark that begins an execution, this is fine-tuning on plans alone (EF-SFT). Raises
    `UserError` for a response without the mark.
    """
    return [_cut(sample, mark) for sample in samples]


def _composed(sample: Sample, prompt: str | None, response: str | None, note: Mapping[str, str]) -> Sample:
    known: dict[str, Any] = {**sample.meta, "prompt": sample.prompt_text, "response": sample.response_text}

    def filled(text: str) -> str:
        def value(place: re.Match[str]) -> str:
            if place[1] not in known:
                raise UserError(
                    f"curation 'compose': sample {sample.id} has no '{place[1]}': {nearest(place[1], known)}"
                )
            return str(known[place[1]])

        return _PLACE.sub(value, text)

    turns = sample.prompt if prompt is None else (*sample.prompt[:-1], {**sample.prompt[-1], "content": filled(prompt)})
    said = sample.response if response is None else (assistant(filled(response)),) if response else ()
    meta = {**sample.meta, **{name: filled(text) for name, text in note.items()}}
    return replace(sample, prompt=turns, response=said, meta=meta)


def _cut(sample: Sample, mark: str) -> Sample:
    before, found, _ = sample.response_text.partition(mark)
    if not mark or not found:
        raise UserError(
            f"curation 'cut_behind': the response of sample {sample.id} has no mark {mark!r}: "
            f"{sample.response_text[:60]!r}"
        )
    first, *_ = sample.response
    return replace(sample, response=({**first, "content": before + mark},))
