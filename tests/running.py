"""Small runs for tests: tiny models on disk, recipes, processes that may be killed, and what a run left behind."""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import architectures
import torch
from safetensors.torch import load_file
from torch import Tensor

from posttrain.generation import Completion
from posttrain.recipe import Recipe, check_recipe
from posttrain.run import run
from posttrain.stages.answers.kept_answers import KeptAnswers, kept_path
from posttrain.terminal import Terminal
from posttrain.training import checkpoints
from posttrain.training.loop import Interrupted

INTERRUPTED = 130


def save_tiny(folder: Path, name: str = "llama") -> Path:
    """A tiny random model with its tokenizer, as `save_pretrained` writes them."""
    architectures.build(name).save_pretrained(folder)
    architectures.tokenizer().save_pretrained(folder)
    return folder


def small_recipe(model: Path, out: Path, stages: Mapping[str, Mapping[str, Any]], **more: Any) -> Recipe:
    """A recipe over 60 chains to train and 10 to test."""
    chains = {"task": "chains", "count": 60, "seed": 1}
    data = {"train": chains, "test": {**chains, "count": 10, "seed": 2}}
    return check_recipe(
        {"name": "small", "out": str(out), "model": str(model), "data": data, "stages": dict(stages), **more}
    )


def run_quietly(recipe: Recipe) -> None:
    run(recipe, Terminal(quiet=True))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl` without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not _is_time(key)} for row in rows]


def _is_time(key: str) -> bool:
    return key == "seconds" or key == "tokens_per_second" or key.startswith("time/")


def weights(folder: Path, stage: str) -> dict[str, Tensor]:
    """What a train stage saved."""
    (file,) = (folder / "models" / stage).glob("*.safetensors")
    return load_file(file)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())  # type: ignore[no-any-return]


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Relative to the largest number of each tensor."""
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max() / one[key].abs().max()) for key in one)


def assert_same_run(one: Path, other: Path) -> None:
    """The same metrics, answers and weights, bit for bit."""
    assert metrics(one) == metrics(other)
    names = [path.name for path in sorted((one / "samples").glob("*"))]
    assert names == [path.name for path in sorted((other / "samples").glob("*"))]
    for name in names:
        assert (one / "samples" / name).read_bytes() == (other / "samples" / name).read_bytes()
    for folder in sorted((one / "models").iterdir()):
        first, second = weights(one, folder.name), weights(other, folder.name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


# --- processes ---


def start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A real process of its own; modules are imported once, in the server that processes are forked from."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as tests do: another number of threads adds in another order
    context = get_context("forkserver")
    context.set_forkserver_preload(["posttrain.run"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def run_in_process(recipe: Mapping[str, Any]) -> None:
    """The whole of a process: run, and say by the exit code how it ended."""
    torch.set_num_threads(1)
    try:
        run_quietly(check_recipe(dict(recipe)))
    except Interrupted:
        sys.exit(INTERRUPTED)


def die_while_saving(recipe: Mapping[str, Any], at: int) -> None:
    """Run, and be killed in the middle of writing checkpoint number `at` of this process."""
    count = 0
    save = checkpoints.torch.save

    def half(content: Any, path: Path) -> None:
        nonlocal count
        count += path.name == "state.pt"
        save(content, path)
        if path.name == "state.pt" and count == at:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), 9)

    checkpoints.torch.save = half  # type: ignore[assignment]
    run_in_process(recipe)


def die_while_answering(recipe: Mapping[str, Any], at: int) -> None:
    """Run, and be killed in the middle of writing the answer number `at` of this process."""
    count = 0
    add = KeptAnswers.add

    def half(kept: KeptAnswers, name: str, completion: Completion) -> None:
        nonlocal count
        count += 1
        add(kept, name, completion)
        if count == at:
            path = kept_path(Path(recipe["out"]), kept.stage)
            os.truncate(path, path.stat().st_size - 20)
            os.kill(os.getpid(), 9)

    KeptAnswers.add = half  # type: ignore[method-assign]
    run_in_process(recipe)


def assert_survives_being_killed(recipe: Callable[[str], Recipe], folder: Path, at: int) -> None:
    """`recipe(name)` runs in `folder / name`: whole, and killed at checkpoint `at` and gone on with, it is the same."""
    run_quietly(recipe("whole"))
    process = start(die_while_saving, recipe("killed").model_dump(mode="json"), at)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    second = start(run_in_process, recipe("killed").model_dump(mode="json"))
    second.join(120)
    assert_same_run(folder / "whole", folder / "killed")
