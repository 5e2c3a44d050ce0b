"""Small comparisons for tests: a recipe file, and jobs as forked processes, which start fast."""

from pathlib import Path
from typing import Any

import yaml
from running import run_in_process, save_tiny, start

from posttrain.comparison.arms import Job
from posttrain.comparison.spec import Comparison, check_comparison


class Forked:
    """A launcher whose processes need not import torch again. `started`: labels of the jobs, in order."""

    def __init__(self, jobs: int = 2) -> None:
        self.jobs, self.started = jobs, list[str]()

    def start(self, job: Job) -> "_Process":
        self.started.append(job.label)
        return _Process(job)


class _Process:
    def __init__(self, job: Job) -> None:
        self._process = start(run_in_process, job.recipe.model_dump(mode="json"))

    def poll(self) -> int | None:
        return self._process.exitcode

    def interrupt(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def write_recipe(folder: Path, **stages: Any) -> Path:
    """A recipe file over a few chains, with evaluations before and after training."""
    chains = {"task": "chains", "count": 40, "seed": 1}
    asked = {"kind": "evaluate", "max_new_tokens": 4}
    content = {
        "model": str(save_tiny(folder / "model")),
        "data": {
            "train": chains,
            "test": {**chains, "count": 6, "seed": 2},
            "other": {**chains, "count": 5, "seed": 3},
        },
        "stages": {
            "before": {**asked, "model": "base"},
            "train": {"kind": "train", "batch_size": 8, "steps": 3, "lr": 0.01, "checkpoint_every": 1},
            "test": {**asked, "model": "train", "reference": "base"},
            **stages,
        },
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def small(recipe: Path, **more: Any) -> Comparison:
    """Two arms with two seeds."""
    arms = {"nll": {}, "dft": {"set": {"objective": "dft"}}}
    return check_comparison({"name": "small", "recipe": str(recipe), "arms": arms, "seeds": 2, **more})
