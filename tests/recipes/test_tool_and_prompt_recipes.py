"""The shipped recipes of papers 12 and 31, made small and run from end to end, and their claims' arms."""

import json
from pathlib import Path

import pytest
from running import manifest, metrics, run_quietly

from posttrain.recipe import read_recipe

SMALL = ["steps=2", "batch_size=4", "data.train.count=12", "max_new_tokens=8"]
TOOLS = [f"data.{name}.count=2" for name in ("test", "selection", "more_tools", "accepted")]
POINTS = ["same_rule", "five", "seven", "twelve", "own_rank", "more_cards", "large_cards", "fake"]


def finished(name: str, out: Path, *more: str) -> Path:
    run_quietly(read_recipe(name, [*SMALL, *more, f"out={out}"]))
    assert manifest(out)["status"] == "finished"
    return out


def test_tl_training_runs_and_learns_no_failed_call(tmp_path: Path) -> None:
    out = finished("tl-training", tmp_path, *TOOLS)
    learned = [json.loads(line) for line in (out / "data" / "without_failed.jsonl").read_text().splitlines()]
    assert len(learned) == 12
    assert {len(row["prompt"]) for row in learned} == {1, 3}
    assert sum(row["kind"] == "train" for row in metrics(out)) == 2


def test_tl_training_runs_without_its_parts(tmp_path: Path) -> None:
    plain = "train.objective={name: nll, reduction: sequences}"
    finished("tl-training", tmp_path, *TOOLS, "train.data=train", "train.loss_on=all", "train.transforms=[]", plain)


@pytest.mark.parametrize("changed", [[], ["data.train.task.rules=[10]", "data.train.style=direct"]], ids=str)
def test_debunk_sft_runs_with_every_training_set(tmp_path: Path, changed: list[str]) -> None:
    finished("debunk-sft", tmp_path, *(f"data.{name}.count=2" for name in POINTS), *changed)


def test_debunk_sokoban_runs(tmp_path: Path) -> None:
    names = ["same_names", "alphabetical", "numerical", "symbols", "larger", "two_boxes", "fake"]
    finished("debunk-sokoban", tmp_path, *(f"data.{name}.count=2" for name in names))
