"""SFT and GRPO on overlapping questions, made small and run from end to end."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from running import manifest, metrics, run_quietly

from posttrain.comparison.claims import shipped_claims
from posttrain.recipe import Recipe, read_recipe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="z3 is limited and isolated on Linux alone")

SMALL = ["data.all.count=60", "data.test.count=4", "sft.epochs=1", "train.steps=2", "train.rollouts.prompts=2"]
SMALL += ["train.rollouts.n=2", "train.rollouts.max_new_tokens=16", "test.n=2", "after_sft.n=2"]
SMALL += ["test.max_new_tokens=16", "after_sft.max_new_tokens=16"]
SIZES = [f"{stage}.steps.0.{size}=20" for stage in ("pairs", "questions") for size in ("size_a", "size_b")]


def small(out: Path, *more: str) -> Recipe:
    return read_recipe("overlap", [*SMALL, *SIZES, *more, f"out={out}"])


def questions(out: Path, stage: str) -> set[str]:
    lines = (out / "data" / f"{stage}.jsonl").read_text().splitlines()
    return {json.loads(line)["prompt"][-1]["content"] for line in lines}


def test_the_recipe_runs_and_says_what_compiles_and_what_means_the_same(tmp_path: Path) -> None:
    run_quietly(small(tmp_path))
    assert manifest(tmp_path)["status"] == "finished"
    found = json.loads((tmp_path / "results" / "test.json").read_text())["metrics"]
    assert {"pass@2/compiles", "pass@2/judged", "gap/compiles", "best@2", "accuracy"} <= found.keys()
    rows: list[dict[str, Any]] = [row for row in metrics(tmp_path) if row.get("stage") == "train"]
    assert {"advantage_size", "dead_groups", "reward", "reward/task/compiles"} <= rows[0].keys()


@pytest.mark.parametrize(("overlap", "shared"), [(0.0, 0), (0.3, 6), (1.0, 20)])
def test_the_overlap_is_that_of_the_files(overlap: float, shared: int, tmp_path: Path) -> None:
    recipe = small(tmp_path, f"questions.steps.0.overlap={overlap}")
    run_quietly(recipe.model_copy(update={"stages": {n: recipe.stages[n] for n in ("pool", "pairs", "questions")}}))
    asked, shown = questions(tmp_path, "questions"), questions(tmp_path, "pairs")
    assert (len(asked), len(shown), len(asked & shown)) == (20, 20, shared)


def test_what_is_in_the_test_is_taken_out_of_the_pool(tmp_path: Path) -> None:
    recipe = small(tmp_path, "data.test.task.part=train", "data.test.seed=1")  # the first four of `all`
    pool = {"pool": recipe.stages["pool"]}
    run_quietly(recipe.model_copy(update={"stages": pool}))
    assert len(questions(tmp_path, "pool")) == 56


def test_the_arms_of_the_claim_differ_in_their_questions_or_their_reward_alone() -> None:
    recipe = read_recipe(str(shipped_claims()["44-sft-grpo-overlap"].parent / "recipes" / "overlap-arms.yaml"), [])
    trained = {name: recipe.stages[name].model_dump() for name in ("train", "some", "all", "gate")}
    for name, stage in trained.items():
        different = {key for key, value in stage.items() if value != trained["train"][key]}
        assert different == {"train": set(), "some": {"data"}, "all": {"data"}, "gate": {"rollouts"}}[name]
    splits = [recipe.stages[name].model_dump()["steps"][0] for name in ("questions", "questions_some", "questions_all")]
    assert [split.pop("overlap") for split in splits] == [0.0, 0.3, 1.0]
    assert splits[0] == splits[1] == splits[2]
    tests = [recipe.stages[name].model_dump() for name in ("after_sft", "test", "test_some", "test_all", "test_gate")]
    assert len({json.dumps({**test, "model": ""}) for test in tests}) == 1
