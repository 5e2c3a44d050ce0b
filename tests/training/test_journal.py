"""The journal: lines appended, and cut back to where a run goes on."""

import json
from pathlib import Path

import pytest

from posttrain.errors import UserError
from posttrain.training.journal import Journal


def row(step: int, stage: str = "sft") -> dict[str, object]:
    return {"stage": stage, "step": step, "kind": "train", "loss": 0.5}


def steps(folder: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def test_rewinding_cuts_off_what_came_after_a_position(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics(row(1))
    journal.answers("sft", [{"text": "größer"}])
    position = journal.position()
    journal.metrics(row(2))
    journal.answers("sft", [{"text": "2"}])
    journal.answers("other", [{"text": "3"}])
    Journal(tmp_path).rewind(json.loads(json.dumps(position)))
    assert steps(tmp_path) == [("sft", 1)]
    assert (tmp_path / "samples" / "sft.jsonl").read_text() == '{"text": "größer"}\n'
    assert not (tmp_path / "samples" / "other.jsonl").exists()


def test_a_half_written_line_is_cut_off_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics(row(1))
    position = journal.position()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sf')
    journal.rewind(position)
    assert steps(tmp_path) == [("sft", 1)]


def test_a_stage_that_starts_over_leaves_the_lines_of_earlier_stages(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin_stage()
    journal.metrics(row(1, "first"))
    start = journal.begin_stage()
    journal.metrics(row(1, "second"))
    again = Journal(tmp_path)
    assert again.begin_stage(start) == start
    again.restart_stage()
    assert steps(tmp_path) == [("first", 1)]


def test_the_first_stage_starts_over_from_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    start = journal.begin_stage()
    journal.metrics(row(1))
    again = Journal(tmp_path)
    again.begin_stage(start)
    again.restart_stage()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_rank_that_does_not_write_writes_nothing_and_cuts_nothing(tmp_path: Path) -> None:
    Journal(tmp_path).metrics(row(1))
    other = Journal(tmp_path, active=False)
    other.metrics(row(2))
    other.answers("sft", [{}])
    other.rewind({})
    assert steps(tmp_path) == [("sft", 1)]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write '.*metrics.jsonl'.*run the same command again"):
        Journal(tmp_path).metrics(row(1))
