"""Runs as processes: repeated, killed, interrupted, and gone on with."""

import json
import os
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from running import (
    INTERRUPTED,
    assert_same_run,
    die_while_saving,
    manifest,
    metrics,
    run_in_process,
    run_quietly,
    save_tiny,
    small_recipe,
    start,
)

from posttrain.errors import UserError
from posttrain.generation.local import LocalEngine
from posttrain.recipe import Recipe
from posttrain.terminal import Terminal
from posttrain.training.loop import Interrupted

WATCH = {"data": "test", "every": 3, "count": 3, "max_new_tokens": 6}
STAGES: dict[str, Any] = {
    # Evaluated while it trains, and stopped early: the held-out loss of this rate rises again.
    "sft": {
        "kind": "train",
        "batch_size": 7,
        "epochs": 6,
        "lr": 0.03,
        "schedule": "constant",
        "checkpoint_every": 4,
        "micro_batch_tokens": 400,
        "watch": WATCH,
        "early_stopping": {"metric": "held_out_loss", "patience": 2},
    },
    # Two epochs of nine steps: a checkpoint falls on the epoch's edge.
    "lora": {
        "kind": "train",
        "init_from": "sft",
        "batch_size": 7,
        "epochs": 2,
        "checkpoint_every": 3,
        "adapter": {"name": "lora", "rank": 4, "dropout": 0.3},
    },
    "after": {"kind": "evaluate", "model": "lora", "max_new_tokens": 6},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing cut off."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_quietly(small_recipe(tiny, folder, STAGES))
    return folder


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Recipe:
    return small_recipe(tiny, tmp_path / "run", STAGES)


def wait_for_rows(folder: Path, rows: int, process: ForkServerProcess, seconds: float = 60) -> None:
    path, end = folder / "metrics.jsonl", time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < end:
        if path.exists() and path.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.001)


def test_the_run_under_test_evaluates_and_stops_early(whole: Path) -> None:
    sft = manifest(whole)["stages"]["sft"]["summary"]
    kinds = [row["kind"] for row in metrics(whole) if row["stage"] == "sft"]
    assert 0 < sft["best_step"] < sft["steps"] < 52
    assert kinds.count("evaluation") == sft["steps"] // 3 + 1
    assert (whole / "samples" / "sft.jsonl").read_text().count("\n") == 3 * kinds.count("evaluation")


def test_the_same_seed_gives_the_same_run(whole: Path, recipe: Recipe) -> None:
    run_quietly(recipe)
    assert_same_run(whole, Path(recipe.folder))


def test_another_seed_gives_another_run(tiny: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run_quietly(small_recipe(tiny, tmp_path / str(seed), {"sft": {"kind": "train", "steps": 2}}, seed=seed))
    assert metrics(tmp_path / "0") != metrics(tmp_path / "1")


def test_a_run_killed_at_random_steps_ends_like_one_that_was_not(whole: Path, recipe: Recipe) -> None:
    folder, total = Path(recipe.folder), len(metrics(whole))
    kills = sorted(random.SystemRandom().sample(range(1, total), 3))
    for rows in kills:
        process = start(run_in_process, recipe.model_dump(mode="json"))
        wait_for_rows(folder, rows, process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"killed at rows {kills}"
    run_quietly(recipe)
    assert_same_run(whole, folder)
    assert not (folder / "checkpoints").exists(), f"killed at rows {kills}"


@pytest.mark.parametrize("at", [1, 3])
def test_a_run_killed_while_it_writes_a_checkpoint_ends_like_one_that_was_not(
    whole: Path, recipe: Recipe, at: int
) -> None:
    process = start(die_while_saving, recipe.model_dump(mode="json"), at)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list((Path(recipe.folder) / "checkpoints").rglob("*.partial"))
    run_quietly(recipe)
    assert_same_run(whole, Path(recipe.folder))


def test_ctrl_c_saves_and_the_same_command_goes_on(whole: Path, recipe: Recipe) -> None:
    folder = Path(recipe.folder)
    process = start(run_in_process, recipe.model_dump(mode="json"))
    wait_for_rows(folder, 6, process)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(60)
    assert process.exitcode == INTERRUPTED
    assert manifest(folder)["status"] == manifest(folder)["stages"]["sft"]["status"] == "interrupted"
    (checkpoint,) = (folder / "checkpoints" / "sft").glob("step-*")
    assert int(checkpoint.name[-8:]) == max(row["step"] for row in metrics(folder))
    assert (folder / "report.html").is_file()
    run_quietly(recipe)
    assert_same_run(whole, folder)


def test_ctrl_c_between_answers_stops_an_evaluation(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    only = recipe.model_copy(update={"stages": {"before": recipe.stages["after"].model_copy(update={"model": "base"})}})
    generate = LocalEngine.generate

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return generate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "generate", interrupted)
        with pytest.raises(Interrupted):
            run_quietly(only)
    assert manifest(Path(only.folder))["stages"]["before"]["status"] == "interrupted"
    run_quietly(only)
    assert manifest(Path(only.folder))["stages"]["before"]["summary"]["answers"] == 10


@pytest.mark.parametrize("kind", ["evaluate", "generate"])
def test_answers_of_a_stage_that_failed_at_its_end_are_not_there_twice(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"kind": kind, "data": "test", "max_new_tokens": 6}
    # A random model gives no right answer: what a generate stage keeps is not what is asked here.
    recipe = small_recipe(tiny, tmp_path / "run", {"asked": stage | ({"keep": "all"} if kind == "generate" else {})})
    answers = tmp_path / "run" / "samples" / "asked.jsonl"
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(f"posttrain.stages.{kind}.write_atomically", fail)
            patch.setattr("posttrain.stages.generate._is_kept", lambda answer, keep: True)
            with pytest.raises(RuntimeError, match="power cut"):
                run_quietly(recipe)
        assert answers.read_text().count("\n") == 10
    assert manifest(tmp_path / "run")["stages"]["asked"]["status"] == "failed"


def fail(*arguments: Any) -> None:
    raise RuntimeError("power cut")


def test_seconds_of_a_stage_go_on_where_a_killed_run_saved_them(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = small_recipe(tiny, folder, {"sft": {"kind": "train", "steps": 6, "checkpoint_every": 2}})
    process = start(die_while_saving, recipe.model_dump(mode="json"), 2)
    process.join(60)
    path = folder / "checkpoints" / "sft" / "step-00000002" / "state.pt"
    state = torch.load(path)
    state["progress"]["seconds"] += 1000
    torch.save(state, path)
    run_quietly(recipe)
    assert manifest(folder)["stages"]["sft"]["seconds"] > 1000
    seconds = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert seconds[1] < 1000 < seconds[2] < seconds[5]


def test_a_finished_run_is_not_trained_again(whole: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (whole / "metrics.jsonl").stat().st_mtime_ns
    events: list[str] = []
    terminal = Terminal(quiet=True)
    monkeypatch.setattr(terminal, "event", lambda name, message, **fields: events.append(f"{name} {fields['stage']}"))
    from posttrain.run import run

    run(small_recipe(tiny, whole, STAGES), terminal)
    assert events == ["skipped sft", "skipped lora", "skipped after"]
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == before


def test_the_folder_of_another_recipe_is_refused_and_left_as_it_is(whole: Path, tiny: Path) -> None:
    before = (whole / "manifest.json").read_bytes()
    other = {**STAGES, "sft": {**STAGES["sft"], "lr": 0.01}}
    with pytest.raises(UserError, match=r"another recipe.*stages\.sft\.lr: 0\.03 there, 0\.01 here"):
        run_quietly(small_recipe(tiny, whole, other))
    assert (whole / "manifest.json").read_bytes() == before


def test_a_stage_added_above_an_interrupted_one_keeps_what_it_wrote(tiny: Path, tmp_path: Path) -> None:
    sft = {"kind": "train", "steps": 6, "checkpoint_every": 2}
    recipe = small_recipe(tiny, tmp_path / "run", {"sft": sft})
    process = start(die_while_saving, recipe.model_dump(mode="json"), 2)
    process.join(60)
    before = {"kind": "evaluate", "max_new_tokens": 6}
    run_quietly(small_recipe(tiny, tmp_path / "run", {"before": before, "sft": sft}))
    assert (tmp_path / "run" / "samples" / "before.jsonl").read_text().count("\n") == 10
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_starting_over_moves_a_run_aside_and_nothing_else(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    recipe = small_recipe(tiny, folder, {"clean": {"kind": "curate", "steps": ["deduplicate"]}}, resume=False)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        run_quietly(recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (folder / "notes.txt").unlink()
    run_quietly(recipe)
    (folder / "manifest.json").write_text("damaged")
    run_quietly(recipe)
    assert (tmp_path / "run.old-1" / "manifest.json").read_text() == "damaged"
    assert manifest(folder)["status"] == "finished"
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="go elsewhere first"):
        run_quietly(recipe.model_copy(update={"out": "."}))


def test_a_second_process_in_a_run_folder_is_refused(recipe: Recipe) -> None:
    process = start(run_in_process, recipe.model_dump(mode="json"))
    wait_for_rows(Path(recipe.folder), 1, process)
    for other in (recipe, recipe.model_copy(update={"resume": False})):
        with pytest.raises(UserError, match="another process is running in folder"):
            run_quietly(other)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert manifest(Path(recipe.folder))["status"] == "running", "the second one has changed nothing"
    only = recipe.model_copy(
        update={"resume": False, "stages": {"after": recipe.stages["after"].model_copy(update={"model": "base"})}}
    )
    run_quietly(only)
    run_quietly(only)
