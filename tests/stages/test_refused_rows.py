"""Rows that cannot be trained on are listed in the run folder."""

import json
from pathlib import Path

import running

from posttrain.recipe import check_recipe


def test_refused_rows_are_listed_with_their_number_and_reason(tmp_path: Path) -> None:
    running.save_tiny(tmp_path / "model")
    rows = [{"prompt": f"{n}?", "completion": f"{n}"} for n in range(9)]
    rows.insert(4, {"prompt": "2?", "completion": "2<|im_end|>"})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {"name": "t", "out": str(tmp_path / "run"), "model": str(tmp_path / "model")}
    data = {"own": {"path": str(tmp_path / "own.jsonl"), "max_refused": 0.2}}
    stages = {"sft": {"kind": "train", "data": "own", "steps": 1}}
    running.run_quietly(check_recipe({**content, "data": data, "stages": stages}))
    (refused,) = map(json.loads, (tmp_path / "run" / "refused" / "sft.jsonl").read_text().splitlines())
    assert refused["row"] == 5
    assert refused["reason"] == "end-of-turn token inside the turn"
    assert refused["detail"]
