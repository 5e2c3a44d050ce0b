"""The recipes of papers 6 and 39, and their claims, made small."""

import json
from pathlib import Path

import pytest
from running import metrics, run_quietly

from posttrain.comparison.arms import arm_recipe
from posttrain.comparison.claims import find_claim
from posttrain.comparison.spec import read_comparison
from posttrain.recipe import read_recipe


def result(out: Path, stage: str) -> dict[str, float]:
    return json.loads((out / "results" / f"{stage}.json").read_text())["metrics"]  # type: ignore[no-any-return]


def test_stop_temperatures_and_budgets_shape_the_length(tmp_path: Path) -> None:
    small = ["train.steps=1", "train.batch_size=4", "data.train.count=4", "data.test.count=4"]
    stages = ("test", "stop_0_5", "stop_2", "stop_3", "stop_4", "stop_8", "budget_16", "budget_32", "budget_48")
    small += [f"{stage}.max_new_tokens=50" for stage in (*stages, "continued")]
    run_quietly(read_recipe("stop-temperature", [*small, f"out={tmp_path}"]))
    assert 0 <= result(tmp_path, "test")["passed_over"] <= 1
    assert result(tmp_path, "budget_16")["mean_length"] <= result(tmp_path, "budget_48")["mean_length"]
    answers = [json.loads(line) for line in (tmp_path / "samples" / "continued.jsonl").read_text().splitlines()]
    assert any("again" in answer["text"] for answer in answers)


def test_tldr_learns_from_prompts_that_say_a_level(tmp_path: Path) -> None:
    small = ["data.demonstrations.count=8", "data.questions.count=12", "data.test.count=3", "sft.steps=1"]
    small += ["sft.batch_size=4", "train.steps=2", "train.rollouts.prompts=3", "train.rollouts.n=3"]
    small += ["train.rollouts.max_new_tokens=40", "train.rollouts.reward.longest=40"]
    small += [f"{stage}.max_new_tokens=40" for stage in ("before", "after_short", "after_medium", "after_long")]
    run_quietly(read_recipe("tldr", [*small, f"out={tmp_path}"]))
    rows = [row for row in metrics(tmp_path) if row.get("stage") == "train" and row["kind"] == "train"]
    assert {"reward", "reward/tldr/right", "length"} < rows[0].keys()
    drawn = [json.loads(line) for line in (tmp_path / "samples" / "train.jsonl").read_text().splitlines()]
    assert all(row["prompt"].split("\n")[1].startswith("Think") for row in drawn)
    asked = [json.loads(line) for line in (tmp_path / "samples" / "after_short.jsonl").read_text().splitlines()]
    assert all(row["prompt"].endswith("\nThink briefly.") for row in asked)


def test_job_screening_trains_and_tells_its_classes(tmp_path: Path) -> None:
    small = ["data.demonstrations.count=40", "data.questions.count=8", "data.test.count=8", "sft.steps=3"]
    small += ["train.steps=2", "train.rollouts.prompts=2", "train.rollouts.n=4"]
    run_quietly(read_recipe("job-screening", [*small, f"out={tmp_path}"]))
    rows = [row for row in metrics(tmp_path) if row.get("stage") == "train" and row["kind"] == "train"]
    assert {"reward", "reward/screening/status", "reward/screening/experience", "kl/k3"} < rows[0].keys()
    assert {"accuracy", "rejected", "recall", "score_error"} < result(tmp_path, "test").keys()


def test_arms_of_claim_06_are_views_of_one_run() -> None:
    claim = read_comparison(find_claim("06"))
    recipe = arm_recipe(claim, "run")
    seen = {stage for arm in claim.arms.values() for stage in arm.stages.values()}
    assert seen <= recipe.stages.keys()
    assert recipe.stages["stop"].thinking.temperature == 3
    assert recipe.stages["budget"].thinking.budget == 42
    assert {recipe.stages[stage].data for stage in ("before", "stop", "budget", "after_medium")} == {"medium"}


@pytest.mark.parametrize("name", ["stop-temperature", "tldr", "job-screening"])
def test_every_stage_is_read_by_something(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.paper in (6, 39)
    read = {getattr(stage, "data", None) for stage in recipe.stages.values()}
    assert recipe.data.keys() - read == set()
