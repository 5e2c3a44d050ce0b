"""Evaluate and generate stages on data with and without right answers, and what is kept of one that ends early."""

import json
from pathlib import Path
from typing import Any

import pytest
import running

from posttrain.errors import UserError
from posttrain.generation.local import LocalEngine
from posttrain.recipe import Recipe, check_recipe
from posttrain.reporting.summary import summary
from posttrain.run import plan
from posttrain.terminal import Terminal
from posttrain.training.loop import Interrupted

PLAIN = [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(5)]
ANSWERED = [{**row, "answer": str(n)} for n, row in enumerate(PLAIN)]
EVALUATE = {"kind": "evaluate", "data": "own", "max_new_tokens": 4}
GENERATE = {"kind": "generate", "data": "own", "max_new_tokens": 4, "temperature": 1.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save_tiny(tmp_path_factory.mktemp("model"))


def recipe_of(model: Path, folder: Path, rows: list[dict[str, Any]], **stages: dict[str, Any]) -> Recipe:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {"name": "t", "out": str(folder / "run"), "model": str(model), "data": {"own": str(path)}}
    return check_recipe({**content, "stages": stages})


def result(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / "run" / "results" / f"{stage}.json").read_text())  # type: ignore[no-any-return]


def test_rows_without_right_answers_are_measured_by_their_likelihood(tiny: Path, tmp_path: Path) -> None:
    train = {"kind": "train", "data": "own", "steps": 3, "batch_size": 5, "lr": 0.01}
    stages = {"before": EVALUATE, "sft": train, "after": {**EVALUATE, "model": "sft"}}
    recipe = recipe_of(tiny, tmp_path, PLAIN, **stages)
    found = plan(recipe, Terminal(quiet=True))["before"]
    assert found.numbers == {"samples": 5}
    assert "likelihood of the given responses" in found.notes[0]
    running.run_quietly(recipe)
    before, after = (line.metrics for line in summary(tmp_path / "run", ["before", "after"]))
    assert set(before) == {"samples", "log_likelihood", "perplexity"}
    assert after["perplexity"] < before["perplexity"]
    assert summary(tmp_path / "run", ["before"])[0].cells()["perplexity"]
    assert "Perplexity" in (tmp_path / "run" / "report.html").read_text()


def test_a_reference_is_left_out_where_no_answers_are_drawn(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, tmp_path, PLAIN, test={**EVALUATE, "reference": "base"})
    assert "not measured" in plan(recipe, Terminal(quiet=True))["test"].notes[1]
    running.run_quietly(recipe)
    assert "kl" not in result(tmp_path, "test")["metrics"]


def test_rows_with_and_without_right_answers_are_refused_with_the_row(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, tmp_path, [*ANSWERED, {"prompt": "x", "completion": "y"}], test=EVALUATE)
    with pytest.raises(UserError, match=r"1 of 6 samples have no 'answer'.*the first: row 6 of .*own\.jsonl"):
        plan(recipe, Terminal(quiet=True))


def test_answers_are_kept_unscored_where_all_are_kept(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, tmp_path, PLAIN, draw={**GENERATE, "keep": "all", "stop": list("abcdefghij klmnop\n")})
    running.run_quietly(recipe)
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "draw.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert {row["value"] for row in rows} == {None}


def test_without_right_answers_none_can_be_chosen(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no 'answer' to tell answers that are right by.*keep: all"):
        plan(recipe_of(tiny, tmp_path, PLAIN, draw=GENERATE), Terminal(quiet=True))


def test_a_forced_beginning_is_part_of_every_answer(tiny: Path, tmp_path: Path) -> None:
    running.run_quietly(recipe_of(tiny, tmp_path, ANSWERED, test={**EVALUATE, "forced": "So: "}))
    lines = (tmp_path / "run" / "samples" / "test.jsonl").read_text().splitlines()
    assert all(json.loads(line)["text"].startswith("So: ") for line in lines)


def test_finished_answers_are_kept_when_an_evaluation_is_stopped(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny, tmp_path, ANSWERED, test={**EVALUATE, "slots": 1})
    generate = LocalEngine.generate

    def stopped(engine: LocalEngine, *arguments: Any) -> Any:
        drawn, keep = 0, engine.drawn

        def two(completion: Any) -> None:
            nonlocal drawn
            assert keep is not None
            keep(completion)
            drawn += 1
            if drawn == 2:
                raise Interrupted

        engine.drawn = two
        return generate(engine, *arguments)

    monkeypatch.setattr(LocalEngine, "generate", stopped)
    with pytest.raises(Interrupted):
        running.run_quietly(recipe)
    assert len((tmp_path / "run" / "samples" / "test.jsonl").read_text().splitlines()) == 2


def test_answers_that_could_not_be_scored_are_kept_for_looking_at(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("no score")

    monkeypatch.setattr("posttrain.stages.context.verify_number", fail)
    recipe = recipe_of(tiny, tmp_path, ANSWERED, test=EVALUATE)
    with pytest.raises(UserError, match="could not be scored"):
        running.run_quietly(recipe)
    assert len((tmp_path / "run" / "samples" / "test.jsonl").read_text().splitlines()) == 5
