"""The continual stage: the accuracy matrix of a sequence of stages, and how much of each task is left at its end."""

import json
from typing import Any

from posttrain.errors import UserError
from posttrain.evaluation.continual import continual_metrics, forgetting_by_problem
from posttrain.recipe import Continual, evaluations_read, start_of
from posttrain.stages.context import Context
from posttrain.stages.files import write_atomically
from posttrain.stages.plan import Plan


def plan_continual(context: Context, name: str, stage: Continual) -> Plan:
    """Check that every evaluation is there."""
    read = evaluations_read(context.recipe, name)
    return Plan({"tasks": len(stage.tasks), "evaluations": len(read)})


def run_continual(context: Context, name: str, stage: Continual) -> dict[str, Any]:
    """Read the evaluations and write `results/<stage>.json`: the matrix, its numbers, and each problem's part."""
    return context.ranks.on_main(lambda: _continual(context, name, stage))


def _continual(context: Context, name: str, stage: Continual) -> dict[str, Any]:
    results = {
        cell: json.loads((context.folder / "results" / f"{other}.json").read_text(encoding="utf-8"))
        for cell, other in evaluations_read(context.recipe, name).items()
    }
    unscored = [result["stage"] for result in results.values() if "accuracy" not in result["metrics"]]
    if unscored:
        raise UserError(f"evaluation '{unscored[0]}' has no accuracy: its data have no right answers to score against")
    accuracy = {cell: float(result["metrics"]["accuracy"]) for cell, result in results.items()}
    tasks, models = list(stage.tasks), list(stage.tasks.values())
    matrix = [[accuracy[model, data] for data in tasks[: place + 1]] for place, model in enumerate(models)]
    earlier = dict(list(stage.tasks.items())[:-1])
    problems = forgetting_by_problem(
        {data: results[model, data]["problems"] for data, model in earlier.items()},
        {data: results[models[-1], data]["problems"] for data in earlier},
    )
    metrics = continual_metrics(matrix)
    if stage.general:
        start = start_of(context.recipe, stage)
        changes = {data: accuracy[models[-1], data] - accuracy[start, data] for data in stage.general}
        metrics["general_change"] = sum(changes.values()) / len(changes)
        metrics |= {f"general_change/{data}": change for data, change in changes.items()}
    content = {"stage": name, "tasks": tasks, "stages": models, "matrix": matrix, "metrics": metrics}
    write_atomically(context, f"results/{name}.json", json.dumps(content | {"problems": problems}, ensure_ascii=False))
    return metrics
