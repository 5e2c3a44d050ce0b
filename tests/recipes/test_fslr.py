"""The recipe of paper 11, made small and run from end to end."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from running import manifest, metrics, run_quietly

from posttrain.recipe import check_recipe, read_recipe, shipped_recipes
from posttrain.recipe.fields import Curate
from posttrain.recipe.training import Train
from posttrain.tasks.word_problems import WordProblems

SMALL = ["train.steps=2", "batch_size=4", "data.train.count=12", "data.test.count=3", "test.max_new_tokens=24"]
STAGES = ["first_steps", "train", "test"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All but the other evaluations."""
    folder = tmp_path_factory.mktemp("fslr") / "run"
    whole = read_recipe("fslr", [*SMALL, f"out={folder}"]).model_dump(mode="json")
    stages = {name: whole["stages"][name] for name in STAGES}
    run_quietly(check_recipe({**whole, "stages": stages}))
    return folder


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def test_it_trains_on_first_steps_and_is_asked_for_whole_solutions(out: Path) -> None:
    steps = rows(out, "data/first_steps")
    assert len(steps) == 12
    for row in steps:
        assert re.fullmatch(r"<think>\d+[-+*/]\d+", row["response"][0]["content"])
        assert row["prompt"][0]["content"].endswith("?")  # the question alone
    assert manifest(out)["stages"]["first_steps"]["summary"]["after_1_first_step"] == 12
    trained = [row for row in metrics(out) if row["kind"] == "train" and row["stage"] == "train"]
    assert [row["sequences"] for row in trained] == [4, 4]
    written = manifest(out)["stages"]["train"]["summary"]["trained_tokens"]
    assert written < 8 * 7  # a tag, two numbers of at most two digits, an operator, and no end
    asked = json.loads((out / "results" / "test.json").read_text())
    questions = WordProblems(part="test").samples(3, 2)  # as they are, with no instruction behind them
    assert asked["problems"].keys() == {sample.id for sample in questions}


def test_the_command_for_a_hub_model_is_a_valid_one() -> None:
    text = shipped_recipes()["fslr-instructed"].read_text()
    (overrides,) = re.findall(r"^# posttrain run fslr-instructed (.*)$", text, re.MULTILINE)
    stages = read_recipe("fslr-instructed", shlex.split(overrides)).stages
    made, trained = stages["first_steps"], stages["train"]
    assert isinstance(made, Curate)
    assert made.steps == ["first_step"]
    assert isinstance(trained, Train)
    assert trained.adapter == {"name": "lora", "rank": 16, "alpha": 32}
    assert (trained.data, trained.lr, trained.epochs) == ("first_steps", 1e-4, 3)
