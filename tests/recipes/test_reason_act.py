"""The recipe of paper 16, made small and run from end to end."""

import json
from pathlib import Path

from running import manifest, metrics, run_quietly

from posttrain.recipe import read_recipe

SMALL = ["data.train.count=16", "data.thoughts.count=8", "data.test.count=4", "data.dialogues.count=3"]
SMALL += ["actions.steps=2", "actions.batch_size=8", "thinking.steps=2", "thinking.batch_size=4", "train.steps=2"]
SMALL += ["train.rollouts.prompts=2", "train.rollouts.n=4", "train.rollouts.max_new_tokens=12"]
SMALL += [f"{stage}.max_new_tokens=12" for stage in ("before", "test", "blank", "dialogues")]


def test_the_recipe_runs_and_its_reference_is_the_model_that_thinks(tmp_path: Path) -> None:
    run_quietly(read_recipe("reason-act", [*SMALL, f"out={tmp_path / 'run'}"]))
    assert manifest(tmp_path / "run")["status"] == "finished"
    rows = [row for row in metrics(tmp_path / "run") if row["stage"] == "train"]
    assert abs(rows[0]["kl/k3"]) < 1e-6
    drawn = [json.loads(line) for line in (tmp_path / "run" / "samples" / "train.jsonl").read_text().splitlines()]
    assert len(drawn) == 2 * 2 * 4
    assert {"reason_act", "reason_act/format"} <= drawn[0]["parts"].keys()
    blank = json.loads((tmp_path / "run" / "samples" / "blank.jsonl").read_text().splitlines()[0])
    assert blank["text"].startswith("<think>.</think>")
    assert "accuracy_kind" in json.loads((tmp_path / "run" / "results" / "test.json").read_text())["metrics"]
