"""The curate stage: curation functions, one after the other, over a data set."""

import json
from typing import Any

from posttrain.curation import curations
from posttrain.errors import UserError
from posttrain.recipe import Curate
from posttrain.stages.context import Context
from posttrain.stages.files import write_atomically
from posttrain.stages.plan import Plan


def plan_curate(context: Context, name: str, stage: Curate) -> Plan:
    """Check the functions and their options, and read every row of data that are there already."""
    steps = " → ".join(curations.options(step)[0] for step in stage.steps)
    data = context.data(stage.data)
    if context.pending(data):
        return Plan({"steps": steps})
    return Plan({"samples": sum(1 for _ in context.samples(data)), "steps": steps})


def run_curate(context: Context, name: str, stage: Curate) -> dict[str, Any]:
    """Apply the functions in order and write `data/<stage>.jsonl`. Raises `UserError` when nothing is left."""
    return context.ranks.on_main(lambda: _curate(context, name, stage))


def _curate(context: Context, name: str, stage: Curate) -> dict[str, Any]:
    samples = list(context.samples(context.data(stage.data)))
    counts: dict[str, int] = {}
    for place, step in enumerate(stage.steps):
        kind, options = curations.options(step)
        samples = list(curations[kind](samples, context.recipe.seed, **options))
        counts[f"after_{place + 1}_{kind}"] = len(samples)
    if not samples:
        raise UserError(f"stage '{name}' left no sample; counts after each step: {counts}")
    text = "".join(json.dumps(sample.to_json(), ensure_ascii=False) + "\n" for sample in samples)
    write_atomically(context, f"data/{name}.jsonl", text)
    return {"samples": len(samples), **counts}
