"""The recipes of papers 30 and 40, made small and run from end to end."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from running import assert_same_run, manifest, metrics, run_quietly

from posttrain.objectives import build_objective
from posttrain.recipe import check_recipe, read_recipe, shipped_recipes
from posttrain.recipe.training import Train
from posttrain.training import loop
from posttrain.training.loop import Interrupted

SMALL = ["data.train.count=40", "data.lessons.count=8", "teacher.steps=1", "teacher.lr=1e-6", "chosen.steps.0.count=12"]
SMALL += ["train.batch_size=4", "train.epochs=3", "train.checkpoint_every=2"]


def glow(out: Path, *more: str) -> Any:
    """Without its evaluations."""
    recipe = read_recipe("glow", [*SMALL, *more, f"out={out}"]).model_dump(mode="json")
    stages = {name: stage for name, stage in recipe["stages"].items() if stage["kind"] != "evaluate"}
    return check_recipe({**recipe, "stages": stages})


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(out) if row["kind"] == "train" and row["stage"] == "train"]


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("glow") / "run"
    run_quietly(glow(out))
    return out


def test_glow_trains_on_right_and_wrong_answers_and_weighs_them_from_the_second_epoch(weighed: Path) -> None:
    rows = [json.loads(line) for line in (weighed / "data" / "chosen.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert {row["meta"]["value"] for row in rows} == {0.0, 1.0}
    steps = steps_of(weighed)
    assert [row["weight"] == 1 for row in steps] == [True] * 3 + [False] * 6
    assert all("gain" in row for row in steps[3:])
    assert steps[-1]["sample_loss"] < steps[0]["sample_loss"]


def test_glow_interrupted_in_its_second_epoch_ends_as_if_it_had_not_been(
    weighed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step, seen = loop._one_step, 0

    def interrupting(*given: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 1 + 6:  # the teacher's, and all up to the third of the second epoch
            raise Interrupted
        return one_step(*given)

    monkeypatch.setattr(loop, "_one_step", interrupting)
    with pytest.raises(Interrupted):
        run_quietly(glow(tmp_path / "run"))
    monkeypatch.undo()
    run_quietly(glow(tmp_path / "run"))
    assert_same_run(weighed, tmp_path / "run")


@pytest.mark.parametrize(
    "adapter", [[], ["adapter={name: lora, rank: 4}", "objective.alpha=0.3"]], ids=["full", "lora"]
)
def test_lfu_trains_all_weights_and_adapters(adapter: list[str], tmp_path: Path) -> None:
    small = ["steps=3", "batch_size=4", "data.train.count=16", "objective.log_rise=true", f"out={tmp_path / 'run'}"]
    recipe = read_recipe("lfu", [*small, *adapter]).model_dump(mode="json")
    run_quietly(check_recipe({**recipe, "stages": {"train": recipe["stages"]["train"]}}))
    assert manifest(tmp_path / "run")["status"] == "finished"
    steps = steps_of(tmp_path / "run")
    assert len(steps) == 3
    for row in steps:
        assert row["loss"] == pytest.approx(row["nll"] + 5 * row["consistency"], rel=1e-4)
        assert row["consistency"] > 0
        assert row["ascent_norm"] > 0


@pytest.mark.parametrize("name", ["glow", "lfu"])
def test_the_commands_for_other_models_are_valid_ones(name: str) -> None:
    commands = re.findall(r"^# posttrain run (.*)$", shipped_recipes()[name].read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        recipe, *overrides = shlex.split(command)
        stage = read_recipe(recipe, overrides).stages["train"]
        assert isinstance(stage, Train)
        assert [term.name for term in build_objective(stage.objective).terms] == [name]
