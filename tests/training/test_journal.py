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


def test_a_stage_that_starts_over_leaves_the_lines_of_other_stages(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for stage in ("first", "second", "first", "third"):
        journal.begin_stage(stage)
        journal.metrics(row(1, stage))
        journal.answers(stage, [{"text": stage}])
    again = Journal(tmp_path)
    again.begin_stage("first")
    again.restart_stage()
    assert steps(tmp_path) == [("second", 1), ("third", 1)]
    assert sorted(path.stem for path in (tmp_path / "samples").iterdir()) == ["second", "third"]


def test_a_stage_goes_on_from_its_position_whatever_other_stages_wrote_since(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin_stage("sft")
    journal.metrics(row(1))
    journal.answers("sft", [{"text": "1"}])
    position = json.loads(json.dumps(journal.position()))
    journal.metrics(row(2))
    journal.answers("sft", [{"text": "2"}])
    journal.begin_stage("before")
    journal.metrics(row(1, "before"))
    journal.answers("before", [{"text": "3"}])
    journal.begin_stage("sft")
    journal.rewind(position)
    assert steps(tmp_path) == [("sft", 1), ("before", 1)]
    assert (tmp_path / "samples" / "sft.jsonl").read_text() == '{"text": "1"}\n'
    assert (tmp_path / "samples" / "before.jsonl").read_text() == '{"text": "3"}\n'
    assert journal.position() == position


def test_half_a_line_of_a_killed_run_is_gone_before_another_stage_writes(tmp_path: Path) -> None:
    Journal(tmp_path).metrics(row(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sf')
    journal = Journal(tmp_path)
    journal.begin_stage("before")
    journal.metrics(row(1, "before"))
    assert steps(tmp_path) == [("sft", 1), ("before", 1)]


def test_the_first_stage_starts_over_from_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin_stage("sft")
    journal.metrics(row(1))
    again = Journal(tmp_path)
    again.begin_stage("sft")
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
