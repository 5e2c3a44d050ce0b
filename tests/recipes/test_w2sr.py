"""W2SR made small: a student that learns from a weak reasoner's traces, from the right ones, from the wrong ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import manifest, run_quietly

from posttrain.errors import UserError
from posttrain.recipe import read_recipe

SMALL = [
    "data.answers.count=8",
    "data.questions.count=24",
    "data.test.count=4",
    "student.steps=1",
    "train.steps=1",
    "before.max_new_tokens=8",
    "teacher.max_new_tokens=8",
    "test.max_new_tokens=8",
]


def run_small(name: str, out: Path, *more: str) -> None:
    run_quietly(read_recipe(name, [*SMALL, *more, f"out={out}"]))


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / f"{stage}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "values"), [("w2sr", {0.0, 1.0}), ("w2sr-right", {1.0}), ("w2sr-wrong", {0.0})])
def test_the_student_learns_from_its_part_of_the_traces(name: str, values: set[float], tmp_path: Path) -> None:
    run_small(name, tmp_path)
    stages = manifest(tmp_path)["stages"]
    assert {row["meta"]["value"] for row in rows(tmp_path, "lessons")} == values
    assert stages["train"]["status"] == "finished"
    counts = stages["lessons"]["summary"]
    assert stages["traces"]["summary"]["kept"] >= counts["after_1_without_loops"] >= counts["after_2_with_answer"]
    assert counts["samples"] == len(rows(tmp_path, "lessons"))


def test_a_trace_says_what_was_answered(tmp_path: Path) -> None:
    run_small("w2sr", tmp_path)
    for row in rows(tmp_path, "lessons"):
        text = row["response"][0]["content"]
        assert f"<answer>{row['meta']['final_answer']}</answer>" in text
        assert (row["meta"]["final_answer"] == row["answer"]) == (row["meta"]["value"] == 1)


def test_a_part_without_a_trace_stops_the_run(tmp_path: Path) -> None:
    """A teacher that is always right leaves no wrong trace to learn from."""
    right = "lessons.steps=[{name: verified, keep: right}, {name: verified, keep: wrong}]"
    with pytest.raises(UserError, match=r"stage 'lessons' left no sample.*'after_2_verified': 0"):
        run_small("w2sr", tmp_path, right)


def test_a_student_of_ones_own_needs_no_stage_that_makes_it() -> None:
    recipe = read_recipe("w2sr", ["student=null", "train.init_from=base", "before.model=base"])
    assert list(recipe.stages) == ["before", "teacher", "traces", "lessons", "train", "test"]
