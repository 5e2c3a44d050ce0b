"""The shipped recipes of ToolRL and of TL-Training's reward, made small and run from end to end."""

import json
from pathlib import Path

import pytest
from running import manifest, metrics, run_quietly

from posttrain.comparison.arms import arm_recipe
from posttrain.comparison.claims import find_claim
from posttrain.comparison.spec import read_comparison
from posttrain.comparison.views import ran, with_views
from posttrain.recipe import Train, read_recipe
from posttrain.rewards.tool_calls import CallError

SMALL = ["steps=1", "warm.batch_size=2", "data.warm.count=4", "data.train.count=4", "data.test.count=2"]
SMALL += ["train.rollouts.prompts=2", "train.rollouts.max_new_tokens=12", "max_new_tokens=4"]


def finished(name: str, out: Path, *more: str) -> Path:
    run_quietly(read_recipe(name, [*SMALL, *more, f"out={out}"]))
    assert manifest(out)["status"] == "finished"
    return out


@pytest.mark.parametrize(
    "reward",
    ["toolrl", "[{name: toolrl, granularity: coarse, scale: dynamic}, {name: thought_length, target: 8}]"],
)
def test_toolrl_runs_with_its_rewards(reward: str, tmp_path: Path) -> None:
    out = finished("toolrl", tmp_path, "data.renamed.count=2", f"train.rollouts.reward={reward}")
    (row,) = [row for row in metrics(out) if row["stage"] == "train"]
    assert row["errors"] == 0
    assert {"reward/toolrl/format", "reward/toolrl/correctness", "dead_groups"} < row.keys()
    drawn = [json.loads(line) for line in (out / "samples" / "train.jsonl").read_text().splitlines()]
    assert len(drawn) == 2 * 8
    # what an untrained model writes cannot be read
    assert all(answer["parts"]["toolrl/correctness"] < 0 for answer in drawn)


def test_toolrl_runs_as_fine_tuning_on_the_same_questions(tmp_path: Path) -> None:
    small = [given for given in SMALL if "rollouts" not in given]
    plain = ["train.rollouts=null", "train.objective=nll", "train.batch_size=2", "data.renamed.count=2"]
    run_quietly(read_recipe("toolrl", [*small, *plain, f"out={tmp_path}"]))
    assert manifest(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("reward", ["call_errors", "task"])
def test_irm_runs_with_a_critic(reward: str, tmp_path: Path) -> None:
    out = finished("irm", tmp_path, "data.declared.count=2", f"train.rollouts.reward={reward}")
    (row,) = [row for row in metrics(out) if row["stage"] == "train"]
    assert "value_error" in str(row.keys())
    if reward == "call_errors":
        classes = [row[f"reward/call_errors/{error}"] for error in CallError]
        assert sum(classes) == pytest.approx(1)


@pytest.mark.parametrize(("name", "others"), [("50-toolrl", ["coarse", "bonus"]), ("31-irm", ["right"])])
def test_a_claims_stages_start_alike_and_differ_in_the_reward_alone(name: str, others: list[str]) -> None:
    claim = read_comparison(find_claim(name))
    (recipe,) = (arm_recipe(claim, arm) for arm in ran(claim))
    with_views(claim, {"original": recipe, "table": recipe})
    train = recipe.stages["train"]
    assert isinstance(train, Train)
    assert train.rollouts is not None
    for other in others:
        stage = recipe.stages[other]
        assert isinstance(stage, Train)
        assert stage.rollouts is not None
        assert stage.rollouts.reward != train.rollouts.reward
        same = stage.rollouts.model_copy(update={"reward": train.rollouts.reward})
        assert stage.model_copy(update={"rollouts": same}) == train
