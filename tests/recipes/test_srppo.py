"""The recipe srppo and its claim, made small."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import metrics, run_quietly

from posttrain.comparison.arms import arm_recipe
from posttrain.comparison.claims import find_claim
from posttrain.comparison.spec import read_comparison
from posttrain.recipe import read_recipe

SMALL = [f"data.{name}.count=6" for name in ("demonstrations", "test", "longer")]
SMALL += [f"{stage}.max_new_tokens=8" for stage in ("before", "after_sft", "test", "longer")]
SMALL += ["data.questions.count=8", "sft.batch_size=3", "train.steps=4", "train.rollouts.prompts=4"]
SMALL += ["train.rollouts.max_new_tokens=24"]


def run(out: Path, *more: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the stage `train`, and its answers."""
    run_quietly(read_recipe("srppo", [*SMALL, f"out={out}", *more]))
    rows = [row for row in metrics(out) if row.get("stage") == "train" and row["kind"] == "train"]
    return rows, [json.loads(line) for line in (out / "samples" / "train.jsonl").read_text().splitlines()]


def test_before_the_first_update_the_policy_is_its_reference(tmp_path: Path) -> None:
    """Check 2 of sheet 15: no KL, and the share of the end token is told beside the reward."""
    rows, answers = run(tmp_path)
    assert rows[0]["reference_kl"] == pytest.approx(0, abs=1e-6)
    assert abs(rows[2]["reference_kl"]) > 1e-6
    assert rows[0]["reward"] == pytest.approx(sum(row["value"] for row in answers[:4]) / 4, abs=1e-4)
    ended = [row for row in answers if row["finish_reason"] == "stop"]
    assert all(("log_ratio/end" in row["parts"]) == (row in ended) for row in answers)
    assert {"value/value_error", "ppo/ratio", "sampled_entropy"} < rows[0].keys()


def test_increments_and_rewards_of_an_own_scale_train_too(tmp_path: Path) -> None:
    reward = "train.rollouts.reward={name: log_ratio, model: sft, placement: tokens, truncated: -5}"
    rows, answers = run(tmp_path, reward, "train.rollouts.normalise=true", "train.rollouts.clip=3")
    assert all(row["value"] == -5 for row in answers if row["finish_reason"] == "length")
    assert len(rows) == 4


def test_the_arms_of_claim_15_differ_as_they_say() -> None:
    claim = read_comparison(find_claim("15"))
    recipe = arm_recipe(claim, "srppo")
    stages = recipe.stages
    assert {stage for arm in claim.arms.values() for stage in arm.stages.values()} <= stages.keys()

    def differences(name: str) -> set[str]:
        one, other = stages["train"].model_dump(), stages[name].model_dump()
        return {key for key in one if one[key] != other[key]}

    assert differences("tokens") == {"rollouts"}
    assert differences("early") == {"steps"}
    assert {stages[stage].reference for stage in ("longer", "early_longer", "tokens_longer")} == {"sft"}
