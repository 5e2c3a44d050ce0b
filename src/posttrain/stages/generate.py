"""The generate stage: a model's own answers as a data set."""

import json
from dataclasses import replace
from typing import Any

from posttrain.data import Sample, assistant
from posttrain.errors import UserError
from posttrain.evaluation import Answer
from posttrain.recipe import Generate
from posttrain.stages.asking import ask, counting, plan_questions, questions
from posttrain.stages.context import Context
from posttrain.stages.files import write_atomically
from posttrain.stages.models import load_policy
from posttrain.stages.plan import Plan


def plan_generate(context: Context, name: str, stage: Generate) -> Plan:
    """Check model and data; render every prompt and see that an answer fits behind it."""
    return Plan(plan_questions(context, stage))


def run_generate(context: Context, name: str, stage: Generate) -> dict[str, Any]:
    """Draw and score answers, and write those that are kept to `data/<stage>.jsonl`: one row an answer.

    Identical answers to one question are kept once. Raises `UserError` when nothing is kept.
    """
    return context.ranks.on_main(lambda: _generate(context, name, stage))


def _generate(context: Context, name: str, stage: Generate) -> dict[str, Any]:
    policy = load_policy(context, stage.model)
    samples = {sample.id: sample for sample in questions(context, stage.data)}
    answers: list[Answer] = []
    expected = len(samples) * stage.n * stage.max_new_tokens
    with context.terminal.bar(f"generating {name}", expected, "tokens at most") as bar:
        ask(
            context,
            policy,
            list(samples.values()),
            stage,
            stage.template,
            name,
            template_options=stage.template_options,
            seed=context.recipe.seed,
            record=answers.append,
            progress=counting(context, bar),
        )
    context.journal.restart_stage()
    context.journal.answers(name, (answer.to_json() for answer in answers))
    kept = {(a.sample_id, a.text): a for a in answers if _is_kept(a, stage.keep)}
    if not kept:
        raise UserError(
            f"stage '{name}' kept none of {len(answers)} answers (keep: {stage.keep}); draw more (n), or keep 'all'"
        )
    rows = [_labelled(samples[answer.sample_id], answer, name).to_json() for answer in kept.values()]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(context, f"data/{name}.jsonl", text)
    right = sum(answer.value == 1 for answer in answers)
    covered = len({answer.sample_id for answer in kept.values()})
    return {"answers": len(answers), "right": right, "kept": len(kept), "problems": len(samples), "covered": covered}


def _is_kept(answer: Answer, keep: str) -> bool:
    """An answer that ran out of tokens is no demonstration of anything, and one without a score is neither."""
    if answer.finish_reason != "stop" or answer.value is None:
        return False
    return keep == "all" or (answer.value >= 1) == (keep == "right")


def _labelled(sample: Sample, answer: Answer, stage: str) -> Sample:
    meta = {**sample.meta, "stage": stage, "value": answer.value, "draw": answer.draw, "source_id": sample.id}
    return replace(sample, response=(assistant(answer.text),), meta=meta)
