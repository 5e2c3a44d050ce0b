"""The curate stage: curation functions, one after the other, over a data set."""

import json
from typing import Any

from posttrain.curation import UNSCORED, curate, curations, pair_numbers, takes_models
from posttrain.data import Sample
from posttrain.data.splitting import decontaminate
from posttrain.errors import UserError
from posttrain.policy import load_tokenizer
from posttrain.recipe import Curate
from posttrain.stages.answers.asked_models import AskedModel
from posttrain.stages.answers.asking import PLANNED_PROMPTS
from posttrain.stages.answers.drawn_answers import check_answers
from posttrain.stages.context import Context
from posttrain.stages.encoded import prompts_of, rendering_of
from posttrain.stages.files import write_atomically
from posttrain.stages.plan import Plan
from posttrain.stages.shape import Shape


def plan_curate(context: Context, name: str, stage: Curate) -> Plan:
    """Check the functions, their options and the models, and read every row of data that are there already."""
    kinds = [curations.options(step)[0] for step in stage.steps]
    _check_models(context, stage, kinds)
    steps = " → ".join(kinds)
    if any(context.pending(context.data(data)) for data in (stage.data, *stage.apart_from)):
        return Plan({"steps": steps})
    samples = _samples(context, stage)
    _check_questions(context, stage, samples)
    return Plan({"samples": len(samples), "steps": steps})


def _samples(context: Context, stage: Curate) -> list[Sample]:
    """The stage's data, without the questions that they are kept apart from."""
    samples = list(context.samples(context.data(stage.data)))
    others = [sample for name in stage.apart_from for sample in context.samples(context.data(name))]
    return decontaminate(samples, others, stage.apart_words)[0] if others else samples


def _check_questions(context: Context, stage: Curate, samples: list[Sample]) -> None:
    """Where answers will be drawn: they can be scored, if they are, and fit behind the questions."""
    for kind, options in map(curations.options, stage.steps):
        if not takes_models(kind) or "max_new_tokens" not in options:
            continue
        if kind not in UNSCORED:
            check_answers(context, stage.data, samples)
        for model in stage.models:
            origin = context.origin(model)
            rendering = rendering_of(stage, Shape.of(origin).model)
            prompts_of(samples[:PLANNED_PROMPTS], load_tokenizer(origin.path), rendering, options["max_new_tokens"])


def _check_models(context: Context, stage: Curate, kinds: list[str]) -> None:
    asking = [kind for kind in kinds if takes_models(kind)]
    if asking and not stage.models:
        raise UserError(f"curation '{asking[0]}' asks models: name them, as in 'models: [base]'")
    if stage.models and not asking:
        raise UserError(f"'models' is {stage.models}, but none of the functions asks any: {', '.join(kinds)}")
    if len(set(stage.models)) < len(stage.models):
        raise UserError(f"'models' is {stage.models}: each can be named once")
    for model in stage.models:
        origin = context.origin(model)
        load_tokenizer(origin.path)
        rendering_of(stage, Shape.of(origin).model)


def run_curate(context: Context, name: str, stage: Curate) -> dict[str, Any]:
    """Apply the functions in order and write `data/<stage>.jsonl`.

    Raises `UserError` when nothing is left, unless the stage says `when_empty: skip`.
    """
    return context.ranks.on_main(lambda: _curate(context, name, stage))


def _curate(context: Context, name: str, stage: Curate) -> dict[str, Any]:
    samples = _samples(context, stage)
    models = {model: AskedModel(context, stage, model, name) for model in stage.models}
    context.journal.restart_stage()
    counts = {"apart": len(samples)} if stage.apart_from else {}
    for place, step in enumerate(stage.steps):
        kind = curations.options(step)[0]
        with context.terminal.waiting(f"curating {name}: {kind}"):
            samples = curate(step, samples, context.recipe.seed, models) if samples else []
        counts[f"after_{place + 1}_{kind}"] = len(samples)
    if not samples and stage.when_empty == "stop":
        raise UserError(
            f"stage '{name}' left no sample; counts after each step: {counts}. With when_empty: skip, the stages that "
            "train on it are skipped"
        )
    text = "".join(json.dumps(sample.to_json(), ensure_ascii=False) + "\n" for sample in samples)
    write_atomically(context, f"data/{name}.jsonl", text)
    return {"samples": len(samples), **counts, **pair_numbers(samples)}
