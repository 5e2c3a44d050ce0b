"""The recipes of papers 35 and 49, and their claims, made small."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import assert_survives_being_killed, manifest, metrics, run_quietly

from posttrain.comparison.arms import arm_recipe
from posttrain.comparison.claims import find_claim
from posttrain.comparison.spec import read_comparison
from posttrain.errors import UserError
from posttrain.recipe import Recipe, read_recipe
from posttrain.recipe.reading import find_recipe

RULE = "train.rollouts.temperature={name: entropy, questions: 4, low: 0.8, high: 1.4, spacing: 0.3}"


def drawn(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples" / f"{stage}.jsonl").read_text().splitlines()]


def of_stage(out: Path, stage: str) -> list[dict[str, Any]]:
    return [row for row in metrics(out) if row["stage"] == stage and row["kind"] == "train"]


def test_two_stages_end_in_the_thought(tmp_path: Path) -> None:
    small = ["data.traces.count=6", "data.questions.count=8", "data.test.count=3", "sft.epochs=2", "sft.batch_size=6"]
    small += ["train.steps=1", "train.rollouts.prompts=2", "train.rollouts.n=3", "train.rollouts.max_new_tokens=40"]
    small += [f"{stage}.max_new_tokens=30" for stage in ("after_sft", "after_sft_tight", "test", "tight")]
    run_quietly(read_recipe("two-stage-math", [*small, f"out={tmp_path}"]))
    (row,) = of_stage(tmp_path, "train")
    parts = {"reward/cosine_length", "reward/relative_length", "reward/answer_before_end"}
    assert {*parts, "kl/k3", "reference_kl"} & row.keys() >= parts | {"kl/k3"}
    assert row["grpo/ratio"] == pytest.approx(1, abs=1e-6)
    for answer in drawn(tmp_path, "train"):
        assert answer["finish_reason"] == "length" or "</think>" in answer["text"]
        assert answer["text"].count("</think>") <= 1


def small_acereason(out: Path) -> Recipe:
    small = ["data.demonstrations.mix.0.count=12", "data.demonstrations.mix.1.count=6", "data.maths.count=3"]
    small += ["data.code.count=2", "data.test.count=2", "data.test_code.count=2", "sft.epochs=1"]
    for stage in ("maths_8k", "maths_16k", "maths_24k", "code_24k", "code_32k", "maths_32k"):
        small += [f"{stage}.steps=1", f"{stage}.rollouts.prompts=2", f"{stage}.rollouts.n=2"]
        small += [f"{stage}.rollouts.max_new_tokens=16"]
        if stage.startswith("maths"):
            small.append(
                f"{stage}.rollouts.temperature={{name: entropy, questions: 2, low: 0.9, high: 1.2, spacing: 0.3}}"
            )
    small += [f"{stage}.max_new_tokens=16" for stage in ("before", "test", "test_code")]
    small += [f"{stage}.steps.0.n=2" for stage in ("hard", "unsolved_code", "unsolved")]
    small += [f"{stage}.steps.0.max_new_tokens=16" for stage in ("hard", "unsolved_code", "unsolved")]
    return read_recipe("acereason", [*small, f"out={out}"])


def test_acereason_runs_its_stages(tmp_path: Path) -> None:
    run_quietly(small_acereason(tmp_path))
    assert manifest(tmp_path)["status"] == "finished"
    (row,) = of_stage(tmp_path, "maths_8k")
    assert row["temperature"] in (0.9, 1.2)
    assert {"tempered_entropy", "entropy_outside"} < row.keys()
    kept_rows = (tmp_path / "data" / "hard.jsonl").read_text().splitlines()
    kept = {json.loads(line)["scalars"]["right_share"] for line in kept_rows}
    assert all(share <= 0.375 for share in kept)


def test_acereason_masks_what_is_cut_off_until_the_last_stage() -> None:
    stages = read_recipe("acereason").stages
    rules = {name: stage.rollouts for name, stage in stages.items() if getattr(stage, "rollouts", None) is not None}
    assert [name for name, rule in rules.items() if rule.truncated == "keep"] == ["maths_32k"]
    budgets = [rule.max_new_tokens for rule in rules.values()]
    assert budgets == sorted(budgets)
    assert rules["code_32k"].temperature == {"name": "linear", "start": 0.6, "end": 1.0}


@pytest.mark.parametrize("name", ["acereason", "two-stage-math"])
def test_the_recipe_is_short(name: str) -> None:
    assert len(find_recipe(name).read_text().splitlines()) < 40


def test_killed_in_the_middle_the_temperature_is_not_chosen_anew(tmp_path: Path) -> None:
    def recipe(name: str) -> Recipe:
        small = ["data.train.count=8", "train.steps=3", "train.rollouts.prompts=2", "train.rollouts.n=2"]
        small += ["train.rollouts.max_new_tokens=12", "train.checkpoint_every=1", RULE]
        found = read_recipe("grpo", [*small, f"out={tmp_path / name}"])
        return found.model_copy(update={"stages": {"train": found.stages["train"]}})

    assert_survives_being_killed(recipe, tmp_path, 1)
    rows = of_stage(tmp_path / "killed", "train")
    assert len({row["temperature"] for row in rows}) == 1
    assert ["tempered_entropy" in row for row in rows] == [True, False, False]


def test_questions_that_share_words_with_the_test_are_taken_out(tmp_path: Path) -> None:
    recipe = read_recipe("acereason", [f"out={tmp_path}", "data.demonstrations.mix.0.count=40", "clean.apart_words=4"])
    run_quietly(recipe.model_copy(update={"stages": {"clean": recipe.stages["clean"]}}))
    loose = read_recipe("acereason", [f"out={tmp_path / 'loose'}", "data.demonstrations.mix.0.count=40"])
    run_quietly(loose.model_copy(update={"stages": {"clean": loose.stages["clean"]}}))
    strict, all_of_them = ((folder / "data" / "clean.jsonl").read_text() for folder in (tmp_path, tmp_path / "loose"))
    assert len(strict.splitlines()) < len(all_of_them.splitlines())
    with pytest.raises(UserError, match="'apart_words' has no effect without apart_from"):
        read_recipe("acereason", ["clean.apart_from=[]"])


@pytest.mark.parametrize("name", ["35-acereason", "35-acereason-sft", "35-acereason-overlong", "49-two-stage-math"])
def test_arms_of_the_claims_are_views_of_one_run(name: str) -> None:
    claim = read_comparison(find_claim(name))
    run = next(arm for arm, spec in claim.arms.items() if spec.view_of is None)
    recipe = arm_recipe(claim, run)
    for arm in claim.arms.values():
        assert arm.view_of in (None, run)
        assert set(arm.stages.values()) <= recipe.stages.keys()


def test_both_rewards_of_claim_49_are_those_of_the_recipe() -> None:
    recipe = arm_recipe(read_comparison(find_claim("49-two-stage-math")), "run")
    first, last = recipe.stages["train_1"], recipe.stages["train"]
    assert first.rollouts == last.rollouts
    assert (first.objective, first.steps, first.lr) == (last.objective, last.steps, last.lr)


def test_what_is_learned_is_reckoned_at_the_temperature_that_it_was_drawn_at(tmp_path: Path) -> None:
    small = ["data.train.count=8", "train.steps=2", "train.rollouts.prompts=2", "train.rollouts.n=3"]
    small += ["train.rollouts.max_new_tokens=16", "train.rollouts.mini_batches=2"]
    small += ["train.rollouts.temperature={name: linear, start: 2.0, end: 1.0}"]
    recipe = read_recipe("grpo", [*small, f"out={tmp_path}"])
    run_quietly(recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}}))
    first, *_ = of_stage(tmp_path, "train")
    assert first["temperature"] == 2
    assert first["sampler_gap"] < 1e-4  # at temperature 1 the same tokens are whole nats likelier
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
