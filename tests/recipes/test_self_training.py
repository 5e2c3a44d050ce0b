"""The recipes that train on a model's own right answers, made small and run from end to end."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from running import manifest, metrics, run_quietly

from posttrain.errors import UserError
from posttrain.recipe import read_recipe

SIZES = {"train": "steps=2", "evaluate": "max_new_tokens=8", "generate": "max_new_tokens=40", "curate": None}


def run_small(name: str, out: Path, *more: str) -> None:
    recipe = read_recipe(name)
    sizes = [f"{stage}.{SIZES[fields.kind]}" for stage, fields in recipe.stages.items() if SIZES[fields.kind]]
    counts = [f"data.{data}.count=12" for data, fields in recipe.data.items() if fields.task is not None]
    run_quietly(read_recipe(name, [*counts, *sizes, *more, f"out={out}"]))


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / f"{stage}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["rft", "offline-self-training", "star", "rest-em"])
def test_the_recipe_runs(name: str, tmp_path: Path) -> None:
    run_small(name, tmp_path)
    assert manifest(tmp_path)["status"] == "finished"
    assert (tmp_path / "results" / "test.json").is_file()


def test_the_union_has_every_distinct_right_answer_and_every_demonstration_once(tmp_path: Path) -> None:
    run_small("offline-self-training", tmp_path, "own.steps=[{name: per_prompt, count: 3}]")
    own, union = rows(tmp_path, "own"), rows(tmp_path, "union")
    assert len({row["id"] for row in union}) == len(union)
    assert {row["id"] for row in own} < {row["id"] for row in union}
    questions = Counter(json.dumps(row["prompt"]) for row in union)
    assert len(questions) == 12
    assert max(questions.values()) <= 4
    assert all(row["meta"]["value"] == 1 for row in own)


def test_only_right_answers_are_imitated_online_beside_demonstrations(tmp_path: Path) -> None:
    sizes = ["train.rollouts.prompts=16", "train.rollouts.max_new_tokens=40", "train.demonstrations.batch_size=4"]
    run_small("online-self-training", tmp_path, *sizes)
    trained = [row for row in metrics(tmp_path) if row["kind"] == "train" and row["stage"] == "train"]
    right = Counter()
    for line in (tmp_path / "samples" / "train.jsonl").read_text().splitlines():
        answer = json.loads(line)
        right[answer["step"]] += answer["value"] == 1
    assert [row["sequences"] - 4 for row in trained] == [right[step] for step in sorted(right)]
    assert all(row["loss"] == pytest.approx((row["0:nll/loss"] + row["1:nll/loss"]) / 2) for row in trained)


def test_a_question_without_a_right_answer_is_asked_again_with_a_hint_and_kept_without_it(tmp_path: Path) -> None:
    run_small("star", tmp_path, "answers_1.hint=' The answer is {answer}.'", "answers_1.max_new_tokens=64")
    asked = [json.loads(line) for line in (tmp_path / "samples" / "answers_1.jsonl").read_text().splitlines()]
    plain, hinted = asked[:12], asked[12:]
    assert sum(answer["value"] == 1 for answer in plain) + len(hinted) == 12
    assert all(answer["prompt"].endswith(f" The answer is {answer['expected']}.") for answer in hinted)
    kept = rows(tmp_path, "answers_1")
    assert len(kept) == sum(answer["value"] == 1 for answer in asked)
    assert not any("The answer is" in row["prompt"][-1]["content"] for row in kept)
    assert manifest(tmp_path)["stages"]["answers_1"]["summary"]["kept_hinted"] == len(kept) - 12 + len(hinted)


@pytest.mark.parametrize(
    ("more", "message"),
    [(["answers_1.hint=The answer"], "does not tell the answer"), (["answers_1.keep=all"], "'hint' has no effect")],
)
def test_a_hint_tells_the_answer_and_needs_right_ones(more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe("star", more)
