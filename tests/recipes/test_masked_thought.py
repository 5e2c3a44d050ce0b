"""The recipe of paper 34, made small and run from end to end."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from running import assert_same_run, metrics, run_quietly

from posttrain.recipe import check_recipe, read_recipe, shipped_recipes
from posttrain.recipe.training import Train
from posttrain.sources import corruption
from posttrain.training.loop import Interrupted

SMALL = ["steps=6", "batch_size=4", "data.train.count=16", "checkpoint_every=2"]
SMALL += ["transforms=[{name: corrupt, rate: 0.9}]"]


def recipe(out: Path, *more: str) -> Any:
    """The train stage alone."""
    whole = read_recipe("masked-thought", [*SMALL, *more, f"out={out}"]).model_dump(mode="json")
    return check_recipe({**whole, "stages": {"train": whole["stages"]["train"]}})


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in metrics(out) if row["kind"] == "train"]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masked") / "run"
    run_quietly(recipe(out))
    return out


def test_only_what_is_read_changes_and_only_after_the_first_step(masked: Path, tmp_path: Path) -> None:
    run_quietly(recipe(tmp_path / "plain", "transforms=[]"))
    found, plain = losses(masked), losses(tmp_path / "plain")
    assert found[0] == plain[0]  # the ramp starts at 0
    assert all(a != b for a, b in zip(found[1:], plain[1:], strict=True))
    assert found[-1] > plain[-1]


def test_a_run_that_was_interrupted_hides_the_same_tokens(
    masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupted, seen = corruption._corrupted, 0

    def interrupting(*given: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 18:
            raise Interrupted
        return corrupted(*given)

    monkeypatch.setattr(corruption, "_corrupted", interrupting)
    with pytest.raises(Interrupted):
        run_quietly(recipe(tmp_path / "run"))
    monkeypatch.undo()
    run_quietly(recipe(tmp_path / "run"))
    assert_same_run(masked, tmp_path / "run")


def test_the_command_for_a_hub_model_is_a_valid_one() -> None:
    text = shipped_recipes()["masked-thought"].read_text()
    (overrides,) = re.findall(r"^# posttrain run masked-thought (.*)$", text, re.MULTILINE)
    stage = read_recipe("masked-thought", shlex.split(overrides)).stages["train"]
    assert isinstance(stage, Train)
    assert stage.transforms == [{"name": "corrupt", "rate": 0.4, "random": 1.0}]
