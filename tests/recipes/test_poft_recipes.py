"""The recipes `poft` and `poft-dpo` and the arms of claim 17, made small and run from end to end."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import manifest, metrics, run_quietly

from posttrain.comparison.arms import arm_recipe
from posttrain.comparison.claims import find_claim
from posttrain.comparison.spec import read_comparison
from posttrain.recipe import Recipe, check_recipe, read_recipe, shipped_recipes

SMALL = ["steps=2", "batch_size=4", "data.train.count=16", "data.test.count=2", "test.max_new_tokens=24"]


def run_only(recipe: Recipe, out: Path, stages: list[str]) -> Path:
    content = {**recipe.model_dump(mode="json"), "out": str(out)}
    content["stages"] = {name: content["stages"][name] for name in stages}
    run_quietly(check_recipe(content))
    assert manifest(out)["status"] == "finished"
    return out


def steps_of(out: Path, stage: str = "train") -> list[dict[str, Any]]:
    return [row for row in metrics(out) if row["kind"] == "train" and row["stage"] == stage]


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / f"{stage}.jsonl").read_text().splitlines()]


def test_poft_scores_trains_and_answers(tmp_path: Path) -> None:
    out = run_only(read_recipe("poft", SMALL), tmp_path / "run", ["scored", "train", "test"])
    assert all(row["scalars"]["reference_score"] < 0 for row in rows(out, "scored"))
    first, second = steps_of(out)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the aligned model is the start
    assert second["score"] != pytest.approx(second["reference_score"], abs=1e-6)
    assert (out / "results" / "test.json").is_file()


def test_the_best_scored_share_can_be_kept(tmp_path: Path) -> None:
    steps = "scored.steps=[reference_scores, {name: top, by: reference_score, share: 0.5}]"
    out = run_only(read_recipe("poft", [*SMALL, steps]), tmp_path / "run", ["scored", "train"])
    assert manifest(out)["stages"]["scored"]["summary"] == {
        "samples": 8,
        "after_1_reference_scores": 16,
        "after_2_top": 8,
    }


def test_dpo_goes_on_from_poft(tmp_path: Path) -> None:
    recipe = read_recipe("poft-dpo", [*SMALL, "answers.max_new_tokens=48"])
    out = run_only(recipe, tmp_path / "run", ["scored", "train", "answers", "feedback", "dpo", "test"])
    assert rows(out, "feedback")
    first, second = steps_of(out, "dpo")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert second["loss"] < first["loss"]
    assert read_recipe("poft-dpo").stages["test"].model == "dpo"


@pytest.mark.parametrize("name", ["poft", "poft-dpo", "ift"])
def test_the_command_for_a_hub_model_is_a_valid_one(name: str) -> None:
    text = shipped_recipes()[name].read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(f"# posttrain run {name} "))
    recipe = read_recipe(name, shlex.split(line)[4:])
    assert recipe.model.path == "mistralai/Mistral-7B-v0.1"
    assert all(stage.lr < 1e-5 for stage in recipe.stages.values() if stage.kind == "train")


def test_the_claim_tells_mislabelled_samples_apart(tmp_path: Path) -> None:
    claim = read_comparison(find_claim("17"))
    small = {"train.steps": 2, "batch_size": 20, "data.train.count": 20}
    out = run_only(arm_recipe(claim, "poft", small), tmp_path / "run", ["noisy", "scored", "train"])
    found = rows(out, "scored")
    assert sum(row["scalars"]["mislabelled"] for row in found) == 8
    noise, clean = (
        [r["scalars"]["reference_score"] for r in found if r["scalars"]["mislabelled"] == is_noise]
        for is_noise in (1, 0)
    )
    assert np.mean(noise) < np.mean(clean) - 0.5
    measured = steps_of(out)[-1]
    metrics_of_claims = [each.metric.removeprefix("train.log.") for each in claim.claims if "tau" in each.metric]
    assert all(0 < measured[name] <= 0.6 for name in metrics_of_claims)
    plain = run_only(arm_recipe(claim, "sft", small), tmp_path / "plain", ["noisy", "train"])
    assert [row["id"] for row in rows(plain, "noisy")] == [row["id"] for row in found]
