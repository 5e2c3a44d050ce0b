"""Runs with what the other tests of resuming lack: transforms, remembered metrics, data of a stage inside a mix."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from running import assert_same_run, metrics, run_in_process, run_quietly, save_tiny, small_recipe, start

from posttrain.recipe import Recipe

PIECES = '''
from dataclasses import replace

import numpy as np
import torch

from posttrain.objectives.objective import objective
from posttrain.objectives.reduction import Reduction
from posttrain.sources.transforms import transform


@transform("hide_some")
def hide_some(sequences, step, *, share: float = 0.3):
    """A share of the inputs becomes token 1, others at every visit."""
    rng = np.random.default_rng(step.seed)
    hidden = []
    for sequence in sequences:
        tokens = sequence.tokens.copy()
        tokens[rng.random(len(tokens)) < share] = 1
        hidden.append(replace(sequence, inputs=tokens))
    return hidden


def recall(sequences, step):
    known = step.memory.get("loss_then", {})
    return [
        replace(sequence, scalars={**sequence.scalars, "then": known.get(sequence.sample_id, 1.0)})
        for sequence in sequences
    ]


@objective("by_memory", level="sequence", reduction=Reduction("sequences"), prepare=recall, remember=("loss_then",))
def by_memory(scores, batch):
    """Samples weigh by the loss of their last visit."""
    loss = batch.mean_by_sequence(-scores.logprobs)
    return batch.scalar("then") * loss, {"loss_then": loss.detach(), "then": batch.scalar("then")}
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    save_tiny(folder / "model")
    (folder / "pieces.py").write_text(PIECES)
    return folder


def recipe_of(place: Path, out: Path) -> Recipe:
    train = {
        "kind": "train",
        "objective": "by_memory",
        "transforms": ["hide_some"],
        "batch_size": 7,
        "epochs": 3,
        "lr": 0.01,
        "checkpoint_every": 4,
    }
    return small_recipe(place / "model", out, {"sft": train}, imports=[str(place / "pieces.py")])


def test_a_killed_run_with_a_transform_and_a_memory_ends_like_one_that_was_not(place: Path, tmp_path: Path) -> None:
    whole, killed = recipe_of(place, tmp_path / "whole"), recipe_of(place, tmp_path / "killed")
    run_quietly(whole)
    path = tmp_path / "killed" / "metrics.jsonl"
    for rows in (11, 19):  # behind the first epoch, when there is something to remember, and off every checkpoint
        process = start(run_in_process, killed.model_dump(mode="json"))
        end = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < end and (not path.exists() or _rows(path) < rows):
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run_quietly(killed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    weights = [row["then"] for row in metrics(tmp_path / "whole")]
    assert set(weights[:8]) == {1.0}
    assert 1.0 not in weights[10:]


def _rows(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_a_training_on_a_mix_with_the_data_of_a_stage_has_both(place: Path, tmp_path: Path) -> None:
    stages: dict[str, Any] = {
        "some": {"kind": "curate", "data": "test", "steps": [{"name": "sample", "count": 4}]},
        "sft": {"kind": "train", "data": "mixed", "steps": 2, "batch_size": 8},
    }
    recipe = small_recipe(place / "model", tmp_path / "run", stages)
    chains = {"task": "chains", "count": 6, "seed": 5}
    data = {**recipe.model_dump()["data"], "mixed": {"mix": [chains, {"stage": "some"}]}}
    run_quietly(Recipe.model_validate({**recipe.model_dump(), "data": data}))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]["sft"]["summary"]["samples"] == 10
