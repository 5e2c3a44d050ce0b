"""What each kind of stage does: a `plan` that checks and counts without computing, and a `run`."""

from collections.abc import Callable
from typing import Any

from posttrain.stages.context import Context
from posttrain.stages.continual import plan_continual, run_continual
from posttrain.stages.curate import plan_curate, run_curate
from posttrain.stages.evaluate import plan_evaluate, run_evaluate
from posttrain.stages.generate import plan_generate, run_generate
from posttrain.stages.merge import plan_merge, run_merge
from posttrain.stages.plan import Plan
from posttrain.stages.train import plan_train, run_train

PLAN: dict[str, Callable[[Context, str, Any], Plan]] = {
    "train": plan_train,
    "evaluate": plan_evaluate,
    "generate": plan_generate,
    "curate": plan_curate,
    "merge": plan_merge,
    "continual": plan_continual,
}
RUN: dict[str, Callable[[Context, str, Any], dict[str, Any]]] = {
    "train": run_train,
    "evaluate": run_evaluate,
    "generate": run_generate,
    "curate": run_curate,
    "merge": run_merge,
    "continual": run_continual,
}

__all__ = ["PLAN", "RUN", "Context", "Plan"]
