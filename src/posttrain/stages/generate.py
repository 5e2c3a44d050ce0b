"""The generate stage: a model's own answers as a data set."""

import json
from dataclasses import replace
from typing import Any

from posttrain.curation import FINAL_ANSWER
from posttrain.data import Sample, assistant
from posttrain.errors import UserError
from posttrain.evaluation import Answer, check_errors
from posttrain.recipe import Generate
from posttrain.rewards import Verify, is_right
from posttrain.stages.answers.asking import ask, can_be_scored, plan_questions, questions
from posttrain.stages.answers.kept_answers import KeptAnswers
from posttrain.stages.context import Context
from posttrain.stages.files import write_atomically
from posttrain.stages.models import load_policy
from posttrain.stages.plan import Plan


def plan_generate(context: Context, name: str, stage: Generate) -> Plan:
    """Check model and data; render every prompt and see that an answer fits behind it."""
    samples = None if context.pending(context.data(stage.data)) else questions(context, stage.data)
    longest = samples and [_hinted(sample, stage) for sample in samples]
    numbers, notes = plan_questions(context, stage, longest)
    if samples is not None and _verify(context, stage, samples) is None:
        notes = (*notes, f"data '{stage.data}' has no right answers: answers are kept unscored")
    return Plan(numbers, notes)


def _verify(context: Context, stage: Generate, samples: list[Sample]) -> Verify | None:
    """None where there is nothing to score by. Raises `UserError` where answers are to be kept by their scores."""
    if can_be_scored(context, stage.data, samples):
        return context.verify
    if stage.keep != "all":
        raise UserError(
            f"data '{stage.data}' has no 'answer' to tell answers that are {stage.keep} by: give one in a column "
            "'answer', or set keep: all"
        )
    return None


def run_generate(context: Context, name: str, stage: Generate) -> dict[str, Any]:
    """Draw and score answers, and write those that are kept to `data/<stage>.jsonl`: one row an answer.

    Identical answers to one question are kept once. With a `hint`, questions that no answer is kept of are asked again
    with it, and what is kept then is written without it: rationalisation, as STaR has it (arXiv 2203.14465).
    Raises `UserError` when nothing is kept.
    """
    return context.ranks.on_main(lambda: _generate(context, name, stage))


def _generate(context: Context, name: str, stage: Generate) -> dict[str, Any]:
    asked = questions(context, stage.data)
    verify = _verify(context, stage, asked)
    policy = load_policy(context, stage.model) if stage.server is None else None
    answers: list[Answer] = []
    drawn = KeptAnswers(context, name)
    sources = {sample.id: sample for sample in asked}
    try:
        ask(context, drawn, stage, asked, policy, verify, answers.append)
        found = {answer.sample_id for answer in answers if _is_kept(answer, stage.keep)}
        again = [] if stage.hint is None else [sample for sample in asked if sample.id not in found]
        if again:
            hinted = [_hinted(sample, stage) for sample in again]
            sources |= {sample.id: source for sample, source in zip(hinted, again, strict=True)}
            ask(context, drawn, stage, hinted, policy, verify, answers.append)
    finally:
        context.journal.restart_stage()
        context.journal.answers(name, (answer.to_json() for answer in answers))
    if stage.keep != "all":
        check_errors(answers, name)
    kept = {(a.sample_id, a.text): a for a in answers if _is_kept(a, stage.keep)}
    if not kept:
        raise UserError(
            f"stage '{name}' kept none of {len(answers)} answers (keep: {stage.keep}); draw more (n), or keep 'all'"
        )
    rows = [_labelled(context, sources[answer.sample_id], answer, name).to_json() for answer in kept.values()]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(context, f"data/{name}.jsonl", text)
    right = sum(is_right(answer.value) for answer in answers if answer.value is not None)
    covered = len({answer.sample_id for answer in kept.values()})
    unfinished = sum(answer.finish_reason != "stop" for answer in answers)
    counts = {"answers": len(answers), "unfinished": unfinished, "right": right, "kept": len(kept)}
    if stage.hint is not None:
        counts["kept_hinted"] = sum(answer.sample_id != sources[answer.sample_id].id for answer in kept.values())
    return counts | {"problems": len(asked), "covered": covered}


def _hinted(sample: Sample, stage: Generate) -> Sample:
    """With the stage's hint behind the last turn. Raises `UserError` where there is no answer to hint at."""
    if stage.hint is None:
        return sample
    if sample.answer is None:
        raise UserError(f"data '{stage.data}': 'hint' tells the answer, and a question has none: {sample.prompt_text}")
    last = sample.prompt[-1]
    content = f"{last['content']}{stage.hint.replace('{answer}', sample.answer)}"
    return replace(sample, prompt=(*sample.prompt[:-1], {**last, "content": content}))


def _is_kept(answer: Answer, keep: str) -> bool:
    """An answer that was cut off is no demonstration of anything; one without a score is neither right nor wrong."""
    if answer.finish_reason != "stop":
        return False
    return keep == "all" or (answer.value is not None and is_right(answer.value) == (keep == "right"))


def _labelled(context: Context, sample: Sample, answer: Answer, stage: str) -> Sample:
    unscored = answer.value is None and answer.error is None
    found = context.final_answer(sample, answer.text) if unscored else answer.canonical
    about = {"value": answer.value, FINAL_ANSWER: found, "draw": answer.draw, "source_id": sample.id}
    return replace(sample, response=(assistant(answer.text),), meta={**sample.meta, "stage": stage, **about})
