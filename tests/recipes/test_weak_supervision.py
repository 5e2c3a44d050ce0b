"""The recipes of sheet 13, made small and run from end to end."""

import json
from pathlib import Path
from typing import Any

from running import metrics, run_quietly

from posttrain.recipe import read_recipe
from posttrain.reporting import write_report

SMALL = ["data.train.count=12", "data.test.count=4", "data.longer.count=2", "data.validation.count=4", "train.steps=3"]
SMALL += [
    "before.n=2",
    "test.n=2",
    "train.rollouts.prompts=2",
    "train.rollouts.max_new_tokens=32",
    "train.watch.every=2",
]
FEW = "few.steps=[{name: right_share, n: 4, max_new_tokens: 32}, {name: difficulty, low: 0.2, high: 0.8}, "
FEW += "{name: sample, count: 2}]"


def run_small(name: str, out: Path, *more: str) -> list[dict[str, Any]]:
    recipe = read_recipe(name, [*SMALL, *more, f"out={out}"])
    stages = {key: stage for key, stage in recipe.stages.items() if key not in ("before", "longer")}
    run_quietly(recipe.model_copy(update={"stages": stages}))
    return [row for row in metrics(out) if row["kind"] == "train" and row["stage"] == "train"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_handful_of_problems_that_are_neither_always_nor_never_right(tmp_path: Path) -> None:
    rows = run_small("weak-scarce", tmp_path, FEW)
    assert len(rows) == 3
    few = lines(tmp_path / "data" / "few.jsonl")
    assert len(few) == 2
    assert all(0.2 <= row["scalars"]["right_share"] <= 0.8 for row in few)
    assert {row["sample_id"] for row in lines(tmp_path / "samples" / "train.jsonl") if row["step"] is not None} >= {
        row["id"] for row in few
    }
    page = write_report(tmp_path).read_text()
    assert "The mean reward came within 5 % of its best at step" in page
    results = json.loads((tmp_path / "results" / "test.json").read_text())["metrics"]
    assert {"faithful", "distinct_answers", "pass@2"} < results.keys()


def test_wrong_answers_are_trusted_in_training_and_nowhere_else(tmp_path: Path) -> None:
    run_small("weak-noisy", tmp_path, "noisy.steps=[{name: noisy_answers, share: 1.0}]")
    noisy = {row["id"]: row for row in lines(tmp_path / "data" / "noisy.jsonl")}
    assert all(row["answer"] != row["meta"]["true_answer"] for row in noisy.values())
    drawn = [row for row in lines(tmp_path / "samples" / "train.jsonl") if row["sample_id"] in noisy]
    assert drawn
    assert {row["expected"] for row in drawn} <= {row["answer"] for row in noisy.values()}
    assert all(row["value"] == float(row["info"]["extracted"] == row["expected"]) for row in drawn)
    asked = {row["sample_id"] for row in lines(tmp_path / "samples" / "test.jsonl")}
    assert not asked & noisy.keys()


def test_the_first_of_the_votes_are_learned_from(tmp_path: Path) -> None:
    rows = run_small("weak-majority", tmp_path, "train.rollouts.n=6", "train.rollouts.learned=3")
    assert {"reward/majority/ratio", "reward/majority/label_right"} < rows[0].keys()
    drawn = [row for row in lines(tmp_path / "samples" / "train.jsonl") if "label" in row["info"]]
    assert len(drawn) == 3 * 2 * 6
    assert all(row["advantage"] == 0 for row in drawn if row["draw"] >= 3)
    for row in drawn:
        assert row["value"] == float(row["info"]["extracted"] == row["info"]["label"])
    assert any(row["info"]["label"] != row["expected"] for row in drawn)  # no gold answer enters


def test_self_certainty_is_the_reward_and_is_above_that_of_a_uniform_model(tmp_path: Path) -> None:
    rows = run_small("weak-self-certainty", tmp_path, "train.rollouts.n=4")
    assert all(row["reward"] > 5 for row in rows)  # ln V of the small vocabulary is less
    assert all(row["dead_groups"] == 0 for row in rows)


def test_a_start_that_thinks_is_reinforced(tmp_path: Path) -> None:
    rows = run_small("weak-thinking", tmp_path, "data.traces.count=32", "started.n=2", FEW)
    assert len(rows) == 3
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "finished"
