"""ReFT and its baselines, made small and run from end to end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import largest_difference, manifest, metrics, run_quietly, weights

from posttrain.advantages import Outcomes, build_advantage
from posttrain.recipe import Recipe, read_recipe

SMALL = ["data.train.count=24", "data.test.count=4", "warm_up.epochs=1", "train.steps=2", "train.rollouts.prompts=8"]
SMALL += ["train.rollouts.max_new_tokens=24", "before.max_new_tokens=8", "test.max_new_tokens=8"]
SMALL += ["votes.max_new_tokens=8", "votes.n=2"]


def small(name: str, out: Path, *more: str) -> Recipe:
    return read_recipe(name, [*SMALL, *more, f"out={out}"])


def drawn(out: Path, stage: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples" / f"{stage}.jsonl").read_text().splitlines()]


def trained(out: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(out) if row["kind"] == "train" and row["stage"] == "train"]


@pytest.mark.parametrize("name", ["reft", "reft-program"])
def test_the_recipe_runs(name: str, tmp_path: Path) -> None:
    run_quietly(small(name, tmp_path))
    assert manifest(tmp_path)["status"] == "finished"
    rows = trained(tmp_path)
    assert {"reward", "ppo/ratio", "value/value_error", "reference_kl"} < rows[0].keys()
    assert {answer["value"] for answer in drawn(tmp_path)} <= {0, 0.1, 1}
    votes = json.loads((tmp_path / "results" / "votes.json").read_text())["metrics"]
    assert "majority@2" in votes or name == "reft-program"


def test_the_first_update_is_minus_the_mean_advantage_of_the_answers(tmp_path: Path) -> None:
    """The sheet's check 7: no ratio has moved yet."""
    recipe = small("reft", tmp_path)
    run_quietly(recipe.model_copy(update={"stages": {key: recipe.stages[key] for key in ("warm_up", "train")}}))
    row = trained(tmp_path)[0]
    assert row["ppo/ratio"] == pytest.approx(1, abs=1e-6)
    means = [answer["advantage"] for answer in drawn(tmp_path) if answer["step"] == 0]
    assert row["ppo/loss"] == pytest.approx(-np.mean(means), abs=1e-4)


def test_where_all_answers_are_worth_the_same_only_the_critic_learns() -> None:
    lengths = np.array([2, 3])
    given = Outcomes(np.ones(2), np.arange(2), lengths, values=[np.zeros(length) for length in lengths])
    columns = build_advantage({"name": "gae", "lam": 1.0})(given)
    assert np.concatenate(columns["advantage"]) == pytest.approx([0] * 5)
    assert np.concatenate(columns["return"]) == pytest.approx([1] * 5)


def test_a_hold_to_the_model_that_one_starts_from_changes_nothing_in_the_first_step(tmp_path: Path) -> None:
    """The sheet's check 8."""
    for name, weight in (("held", "0.05"), ("free", "0")):
        recipe = small("reft", tmp_path / name, "train.steps=1", f"train.rollouts.kl_in_reward={weight}")
        run_quietly(recipe.model_copy(update={"stages": {key: recipe.stages[key] for key in ("warm_up", "train")}}))
    held, free = (trained(tmp_path / name)[0] for name in ("held", "free"))
    assert held["reference_kl"] == pytest.approx(0, abs=1e-5)
    assert held["loss"] == pytest.approx(free["loss"], abs=1e-4)
    assert largest_difference(weights(tmp_path / "held", "train"), weights(tmp_path / "free", "train")) < 1e-2
