"""The recipes of sheet 19, made small and run from end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import manifest, run_quietly

from posttrain.recipe import Recipe, read_recipe, shipped_recipes

TASKS = ("reverse", "sort", "rotate")
SMALL = ["skills.steps=1", "data.chains.count=4", *(f"data.{task}.count=6" for task in TASKS)]
SMALL += [f"on_{task}.steps=1" for task in TASKS] + [f"data.{task}_train.count=8" for task in TASKS]


def small(name: str, out: Path, *more: str) -> Recipe:
    return read_recipe(name, [*SMALL, *more, f"out={out}"])


def kept(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results" / "kept.json").read_text())
    return found


@pytest.mark.parametrize("name", ["continual-sft", "continual-grpo", "rif-rft"])
def test_a_recipe_fits_on_a_page(name: str) -> None:
    assert len(shipped_recipes()[name].read_text().splitlines()) < 40


def test_a_sequence_ends_with_its_matrix(tmp_path: Path) -> None:
    run_quietly(small("continual-sft", tmp_path))
    found = kept(tmp_path)
    assert found["tasks"] == list(TASKS)
    assert [len(row) for row in found["matrix"]] == [1, 2, 3]
    assert {"average_accuracy", "forgetting", "forgetting_from_best", "general_change/chains"} < found["metrics"].keys()


def test_the_same_sequence_is_learned_by_reinforcement(tmp_path: Path) -> None:
    run_quietly(small("continual-grpo", tmp_path, *(f"on_{task}.rollouts.prompts=2" for task in TASKS)))
    stages = manifest(tmp_path)["stages"]
    assert all(stages[f"on_{task}"]["summary"]["questions"] == 8 for task in TASKS)
    assert kept(tmp_path)["stages"] == [f"on_{task}" for task in TASKS]


def test_each_stage_learns_from_what_the_model_that_enters_it_gets_right(tmp_path: Path) -> None:
    """The shipped model knows chains, and none of the digits: two stages train, and one is skipped."""
    asked = [f"data.{task}_train.task={{name: chains, terms: [2, 2]}}" for task in ("reverse", "rotate")]
    small_filter = ["on_reverse.rollouts.max_new_tokens=24", "on_rotate.rollouts.max_new_tokens=24", "skills.lr=1.0e-9"]
    small_filter += [f"kept_{task}.steps.0={{name: right_share, n: 4, max_new_tokens: 24}}" for task in TASKS]
    run_quietly(small("rif-rft", tmp_path, *asked, *small_filter))
    stages = manifest(tmp_path)["stages"]
    for task in ("reverse", "rotate"):
        assert 0 < stages[f"on_{task}"]["summary"]["questions"] == stages[f"kept_{task}"]["summary"]["samples"]
    assert stages["kept_sort"]["summary"]["samples"] == 0
    assert "kept_sort kept no sample" in stages["on_sort"]["summary"]["note"]
    assert kept(tmp_path)["matrix"][0][0] == kept(tmp_path)["matrix"][1][0]  # nothing moved in between
