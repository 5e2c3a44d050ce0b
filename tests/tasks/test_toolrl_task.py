import json
from pathlib import Path

import pytest

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.tasks.toolrl import ToolRL

CALL = '<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>'
ROW = {"instruction": "1. Name: f\n", "input": "<user> Go. </user>", "output": f"<think> Well. </think>\n{CALL}"}
REPLY = {**ROW, "output": "<think> Hm. </think>\n<response> No tool. </response>"}


def samples(tmp_path: Path, *rows: object, style: str | None = None) -> tuple[ToolRL, list[Sample]]:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    task = ToolRL(path=str(file))
    return task, task.samples(10, 0, style=style)


def test_a_row_becomes_a_dialogue_and_its_calls(tmp_path: Path) -> None:
    _, (sample,) = samples(tmp_path, ROW)
    assert [turn["content"] for turn in sample.prompt] == [ROW["instruction"], ROW["input"]]
    assert sample.response_text == ROW["output"]
    assert sample.answer == CALL
    assert samples(tmp_path, ROW, style="answer")[1][0].response_text == CALL


def test_calls_are_compared_and_replies_are_only_asked_for(tmp_path: Path) -> None:
    task, (sample,) = samples(tmp_path, ROW)
    assert task.verify(sample, "<think>x</think>" + CALL.replace("\n", "")).value == 1
    assert task.verify(sample, CALL.replace("1", '"1"')).info["reason"] == "wrong"
    assert task.verify(sample, "<response> done </response>").info["reason"] == "missing"
    assert task.verify(sample, CALL[:-3]).info["reason"] == "malformed"
    task, (sample,) = samples(tmp_path, REPLY)
    assert task.verify(sample, "<response> something else </response>").value == 1
    assert task.verify(sample, CALL).value == 0
    assert task.verify(sample, "nothing").value == 0


def test_a_row_whose_call_is_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"item 2.*not JSON"):
        samples(tmp_path, ROW, {**ROW, "output": "<tool_call>f(1)</tool_call>"})


def test_the_real_files_are_read_and_right(shared_data: Path) -> None:
    for name, count, calling in (("rlla_sft.json", 400, 346), ("test.parquet", 80, 71)):
        task = ToolRL(path=str(shared_data / "toolrl" / name))
        for style in task.styles:
            found = task.samples(1000, 0, style=style)
            assert len(found) == count
            assert sum(sample.meta["steps"] > 0 for sample in found) == calling
            assert all(task.verify(sample, sample.response_text).value == 1 for sample in found)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_text("no")
    with pytest.raises(UserError, match="cannot read"):
        ToolRL(path=str(file)).samples(1, 0)
