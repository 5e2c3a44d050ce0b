"""The continual stage: which evaluations it reads, what it makes of them, and where its numbers go."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import manifest, run_quietly, save_tiny

from posttrain.comparison.collect import collect
from posttrain.errors import UserError
from posttrain.evaluation.continual import continual_metrics
from posttrain.recipe import Recipe, check_recipe, evaluations_read

ASK = {"kind": "evaluate", "max_new_tokens": 4}
TRAIN = {"kind": "train", "data": "train", "steps": 1, "batch_size": 2}
STAGES: dict[str, Any] = {
    "before": {**ASK, "model": "base", "data": "other"},
    "first": TRAIN,
    "one_1": {**ASK, "model": "first", "data": "one"},
    "second": {**TRAIN, "init_from": "first"},
    "one_2": {**ASK, "model": "second", "data": "one"},
    "two_2": {**ASK, "model": "second", "data": "two"},
    "other_2": {**ASK, "model": "second", "data": "other"},
    "kept": {"kind": "continual", "tasks": {"one": "first", "two": "second"}, "general": ["other"]},
}


def recipe(out: Path, stages: dict[str, Any], model: Path | str = "tiny") -> Recipe:
    chains = {"task": "chains", "count": 4}
    data = {name: {**chains, "seed": seed} for seed, name in enumerate(["train", "one", "two", "other"])}
    return check_recipe({"name": "kept", "out": str(out), "model": str(model), "data": data, "stages": stages})


def test_every_stage_is_read_on_the_tasks_so_far_and_other_abilities_at_both_ends(tmp_path: Path) -> None:
    assert evaluations_read(recipe(tmp_path, STAGES), "kept") == {
        ("first", "one"): "one_1",
        ("second", "one"): "one_2",
        ("second", "two"): "two_2",
        ("base", "other"): "before",
        ("second", "other"): "other_2",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"one_2": None}, r"asks 'second' about 'one': add one, such as one_after_second: \{kind: evaluate"),
        ({"before": None}, "asks 'base' about 'other'"),
        ({"again": {**ASK, "model": "first", "data": "one"}}, "one_1 and again both ask 'first' about 'one'"),
        ({"second": TRAIN}, "'second' does not start from 'first'"),
        ({"kept": {"kind": "continual", "tasks": {"one": "frist"}}}, "'frist' is no train or merge stage.*first"),
        ({"kept": {"kind": "continual", "tasks": {}}}, "'stages.kept.tasks' has to have 1"),
    ],
)
def test_what_makes_no_sequence_is_refused_before_the_run(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    last = {**STAGES, **change}.pop("kept")
    stages = {name: stage for name, stage in {**STAGES, **change, "kept": last}.items() if stage is not None}
    stages["kept"] = stages.pop("kept")  # behind what was added
    with pytest.raises(UserError, match=message):
        run_quietly(recipe(tmp_path / "run", stages, save_tiny(tmp_path / "model")))
    assert not (tmp_path / "run" / "models").exists()


def test_stages_may_lie_between_two_of_the_sequence(tmp_path: Path) -> None:
    between = {"mixed": {"kind": "merge", "models": ["base", "first"]}}
    stages = {**STAGES, **between, "second": {**TRAIN, "init_from": "mixed"}}
    assert evaluations_read(recipe(tmp_path, stages), "kept")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continual")
    stages = {name: {**stage, "max_new_tokens": 48} if name != "kept" and "model" in stage else stage
              for name, stage in STAGES.items()}  # fmt: skip
    run_quietly(recipe(folder / "run", stages))
    return folder / "run"


def result(run: Path, stage: str) -> Any:
    return json.loads((run / "results" / f"{stage}.json").read_text())


def test_the_matrix_is_that_of_the_evaluations(finished: Path) -> None:
    accuracy = {name: result(finished, name)["metrics"]["accuracy"] for name in ("one_1", "one_2", "two_2")}
    found = result(finished, "kept")
    assert found["matrix"] == [[accuracy["one_1"]], [accuracy["one_2"], accuracy["two_2"]]]
    change = result(finished, "other_2")["metrics"]["accuracy"] - result(finished, "before")["metrics"]["accuracy"]
    general = {"general_change": change, "general_change/other": change}
    assert found["metrics"] == continual_metrics(found["matrix"]) | general
    assert manifest(finished)["stages"]["kept"]["summary"] == found["metrics"]
    mean = sum(found["problems"].values()) / len(found["problems"])
    assert mean == pytest.approx(found["metrics"]["forgetting"])


def test_a_comparison_sees_its_numbers_and_its_problems(finished: Path) -> None:
    runs, problems = collect({"arm": {0: finished}})
    (run,) = runs["arm"]
    assert run.values["kept.forgetting"] == result(finished, "kept")["metrics"]["forgetting"]
    assert len(problems["kept"]) == len(run.shares["kept"]) == 4


def test_the_report_shows_the_matrix_and_not_an_evaluation_without_accuracy(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Tasks in sequence" in page
    assert page.count("after second") == 1
