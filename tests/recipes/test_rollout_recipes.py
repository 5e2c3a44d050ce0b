"""The shipped recipes that learn from their own answers, made small and run from end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import assert_survives_being_killed, manifest, metrics, run_quietly

from posttrain.errors import UserError
from posttrain.recipe import Recipe, read_recipe

SMALL = ["data.train.count=12", "data.test.count=4", "data.longer.count=2", "train.steps=2", "train.rollouts.prompts=4"]
SMALL += ["train.rollouts.n=4", "train.rollouts.max_new_tokens=24"]


NEW = ["ppo", "remax", "online-dpo", "best-of-n", "on-policy-distillation", "clip-cov", "kl-cov"]


def small(name: str, out: Path, *more: str) -> Recipe:
    return read_recipe(name, [*SMALL, *more, f"out={out}"])


def drawn(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples" / "train.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name", ["grpo", "dr-grpo", "dapo", "rloo", "gspo", "cispo", "reinforce-plus-plus", "raft", *NEW]
)
def test_the_recipe_trains(name: str, tmp_path: Path) -> None:
    recipe = small(name, tmp_path / "run", *(["train.reference=base"] if name == "on-policy-distillation" else []))
    run_quietly(recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}}))
    rows = metrics(tmp_path / "run")
    assert len(rows) == 2
    assert {"reward", "dead_groups", "length", "truncated", "sampled_entropy"} < rows[0].keys()
    assert len({(row["sample_id"], row["draw"], row["step"]) for row in drawn(tmp_path / "run")}) >= 16


def test_grpo_runs_whole_and_keeps_every_answer_with_its_score(tmp_path: Path) -> None:
    run_quietly(small("grpo", tmp_path, "objective=[grpo, {name: kl, weight: 0.04, reduction: sequences}]"))
    assert manifest(tmp_path)["status"] == "finished"
    answers = drawn(tmp_path)
    assert len(answers) == 2 * 4 * 4
    assert {answer["step"] for answer in answers} == {0, 1}
    for answer in answers:
        assert answer["value"] == answer["parts"]["task"]
    rows = [row for row in metrics(tmp_path) if row["kind"] == "train"]
    assert rows[0]["grpo/ratio"] == pytest.approx(1.0)
    assert rows[0]["kl/k3"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["kl/k3"] > 0
    # what the engine thought of its answers is what the trainer thinks of them
    assert rows[0]["nll"] == pytest.approx(rows[0]["sampled_entropy"], abs=1e-4)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_killed_between_rollout_and_update_nothing_is_lost_and_nothing_drawn_twice(at: int, tmp_path: Path) -> None:
    more = ["train.rollouts.mini_batches=2", "train.steps=4", "train.checkpoint_every=1"]

    def recipe(name: str) -> Recipe:
        found = small("grpo", tmp_path / name, *more)
        return found.model_copy(update={"stages": {"train": found.stages["train"]}})

    assert_survives_being_killed(recipe, tmp_path, at)
    assert drawn(tmp_path / "whole") == drawn(tmp_path / "killed")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["objective=nll"], "no term of the objective reads it"),
        (["objective=[grpo, nll]"], "the term 'nll' imitates every answer alike, wrong ones too"),
        (["train.rollouts.n=1"], "'n' must be 2 or more"),
        (["train.rollouts.advantage=gae"], "advantage 'gae' needs a critic"),
        (["objective=[grpo, value]"], "the term 'value' needs a critic"),
        (["train.critic=head"], "a critic learns by the term 'value'"),
        (["train.critic_lr_factor=2"], "'critic_lr_factor' has no effect"),
        (["train.rollouts.choose=best"], "leaves none to compare with"),
        (["train.rollouts.choose=pairs"], "loss of preference pairs"),
        (["objective=dpo"], "loss of preference pairs|no term of the objective"),
        (["train.rollouts.learned=5"], "more than the 4 answers"),
        (["train.rollouts.kl_target=0.1"], "'kl_target' has no effect"),
        (["train.rollouts.reward={name: log_ratio, model: sft}"], "model 'sft' is neither"),
        (["train.rollouts.advantage=grup"], "unknown advantage 'grup'"),
        (["train.rollouts.reward=tsk"], "unknown reward 'tsk'"),
        (["train.rollouts.kl_in_reward=0.1"], "which advantage 'group' does not read"),
        (["train.rollouts.kl_in_reward=0.1", "train.rollouts.advantage=reinforce++"], "needs a reference"),
        (["train.rollouts.max_new_tokens=2000"], "lower max_new_tokens"),
        (["train.rollouts.mini_batches=5"], "more than the 4 prompts"),
        (["train.batch_size=8"], "rollouts.prompts"),
        (["train.rollouts.temperature=0"], "temperature"),
    ],
)
def test_what_cannot_learn_is_refused_before_anything_is_drawn(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_quietly(small("grpo", tmp_path / "run", *more))
    assert not (tmp_path / "run" / "samples").exists()


def test_rows_of_question_and_answer_become_questions_by_renaming_a_column(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1 + 1 = ?", "answer": "2"}\n{"question": "2 + 1 = ?", "answer": "3"}\n')
    given = [f"data.train={rows}", "train.steps=1", "train.rollouts.prompts=2", "train.rollouts.n=2"]

    def run_on(*more: str) -> None:
        recipe = read_recipe("grpo", [*given, "train.rollouts.max_new_tokens=8", f"out={tmp_path / 'run'}", *more])
        run_quietly(recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}}))

    with pytest.raises(UserError, match=r"columns=\{question: prompt\}"):
        run_on()
    run_on("data.train.columns={question: prompt}")
    assert {row["expected"] for row in drawn(tmp_path / "run")} == {"2", "3"}
