"""The recipes of paper 33, made small and run from end to end."""

import json
from pathlib import Path
from typing import Any

from running import manifest, metrics, run_quietly

from posttrain.recipe import read_recipe


def run_small(name: str, folder: Path, *changes: str) -> None:
    run_quietly(read_recipe(name, [*changes, f"out={folder}"]))
    assert manifest(folder)["status"] == "finished"


def found(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / "results" / f"{stage}.json").read_text())["metrics"]  # type: ignore[no-any-return]


def small(stages: tuple[str, ...], tokens: int = 12) -> list[str]:
    return [f"{stage}.max_new_tokens={tokens}" for stage in stages]


def test_plans_are_learned_weighed_and_voted_by(tmp_path: Path) -> None:
    data = ["data.train.count=16", "data.questions.count=8", "data.test.count=3"]
    steps = ["sft.steps=1", "sft.batch_size=4", "explore.steps=1", "train.steps=1"]
    rollouts = [f"{stage}.rollouts.{key}" for stage in ("explore", "train") for key in ("prompts=2", "n=2")]
    rollouts += [f"{stage}.rollouts.max_new_tokens=12" for stage in ("explore", "train")]
    votes = ["clusters.plans.k=3", "clusters.plans.clusters=2", "clusters.plans.max_new_tokens=6"]
    run_small("e2c", tmp_path, *data, *steps, *rollouts, *votes, *small(("before", "test", "clusters")))
    (row,) = [row for row in metrics(tmp_path) if row["stage"] == "train"]
    assert "reward/plan_adherence/plan_items" in row
    assert {"adherence", "followed"} <= found(tmp_path, "before").keys()
    assert {"decoded_tokens", "token_share", "majority@3"} <= found(tmp_path, "clusters").keys()


def test_the_naive_baseline_has_the_same_stages_and_other_data() -> None:
    causal, naive = read_recipe("e2c", []), read_recipe("e2c-naive", [])
    assert causal.stages == naive.stages
    assert naive.data["train"] == causal.data["train"].model_copy(update={"style": "naive"})


def test_exploration_only_fine_tuning_trains_nothing_behind_the_mark(tmp_path: Path) -> None:
    data = ["data.known.count=8", "data.domain.count=8", "data.test.count=3"]
    steps = ["e2c.steps=1", "e2c.batch_size=4", "train.steps=2", "train.batch_size=4"]
    run_small("ef-sft", tmp_path, *data, *steps, "train.data=beginnings", *small(("before", "test")))
    rows = [json.loads(line) for line in (tmp_path / "data" / "beginnings.jsonl").read_text().splitlines()]
    texts = [row["response"][0]["content"] for row in rows]
    assert all(text.startswith("<plan>1. ") and text.endswith("</plan><execute>") for text in texts)
    whole, plans = ([row["tokens"] for row in metrics(tmp_path) if row["stage"] == stage] for stage in ("e2c", "train"))
    assert max(plans) < min(whole) / 2


def test_by_default_known_whole_answers_stand_beside_the_plans() -> None:
    recipe = read_recipe("ef-sft", [])
    beginnings, known = recipe.data["both"].mix or []
    assert recipe.stages["train"].data == "both"  # type: ignore[union-attr]
    assert (beginnings.stage, known.task) == ("beginnings", recipe.data["known"].task)


def test_a_model_makes_plans_of_its_solutions_and_executions_of_its_plans(tmp_path: Path) -> None:
    changes = ["data.questions.count=12", "executions.keep=all", "solutions.keep=all"]
    run_small("e2c-data", tmp_path, *changes)
    (first, *_) = [json.loads(line) for line in (tmp_path / "data" / "to_execute.jsonl").read_text().splitlines()]
    assert first["prompt"][-1]["content"].startswith(first["meta"]["question"])
    assert first["prompt"][-1]["content"].endswith(first["meta"]["plan"])
    assert first["answer"]
