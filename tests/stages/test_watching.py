"""Evaluation while training: what is refused before the start, and what is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import metrics, run_quietly, save_tiny, small_recipe

from posttrain.errors import UserError
from posttrain.recipe import Recipe, Train
from posttrain.run import plan
from posttrain.stages.watching import stop_rule
from posttrain.terminal import Terminal
from posttrain.training.loop import EarlyStopping

WATCH = {"data": "test", "every": 1, "count": 2, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def watched(tiny: Path, out: Path, **fields: Any) -> Recipe:
    return small_recipe(tiny, out, {"sft": {"kind": "train", "steps": 2, "watch": WATCH, **fields}})


def demonstrations_without_answers(folder: Path) -> str:
    path = folder / "plain.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": f"{n}!"}) + "\n" for n in range(5)))
    return str(path)


def test_a_metric_that_is_not_measured_is_refused_before_the_start(tiny: Path, tmp_path: Path) -> None:
    recipe = watched(tiny, tmp_path / "run", early_stopping={"metric": "acuracy"})
    with pytest.raises(UserError, match=r"stage 'sft': early_stopping\.metric 'acuracy'.*did you mean 'accuracy'"):
        plan(recipe, Terminal(quiet=True))


@pytest.mark.parametrize(
    ("metric", "larger"),
    [("accuracy", True), ("pass@4", True), ("held_out_loss", False), ("truncated", False), ("errors", False)],
)
def test_a_metric_has_its_better_side_unless_the_recipe_names_one(
    metric: str, larger: bool, tiny: Path, tmp_path: Path
) -> None:
    for said, expected in ((None, larger), (True, True), (False, False)):
        rule = {"metric": metric, "larger_is_better": said}
        stage = watched(tiny, tmp_path / "run", early_stopping=rule).stages["sft"]
        assert isinstance(stage, Train)
        assert stop_rule(stage) == EarlyStopping(metric, larger_is_better=expected)


def test_accuracy_is_not_measured_without_answers(tiny: Path, tmp_path: Path) -> None:
    recipe = watched(tiny, tmp_path / "run", watch={**WATCH, "generate": False}, early_stopping={"metric": "accuracy"})
    with pytest.raises(UserError, match="'accuracy' is not measured here"):
        plan(recipe, Terminal(quiet=True))


def test_answers_that_do_not_fit_behind_their_questions_are_refused_before_the_start(
    tiny: Path, tmp_path: Path
) -> None:
    recipe = watched(tiny, tmp_path / "run", watch={**WATCH, "max_new_tokens": 500})
    with pytest.raises(UserError, match="more than the 512 tokens that the model can read"):
        plan(recipe, Terminal(quiet=True))


def on_plain_rows(tiny: Path, folder: Path, **fields: Any) -> Recipe:
    recipe = watched(tiny, folder / "run", **fields)
    data = {**recipe.data, "plain": demonstrations_without_answers(folder)}
    return Recipe.model_validate({**recipe.model_dump(), "data": data})


@pytest.mark.parametrize("generate", [True, False])
def test_without_right_answers_only_the_held_out_loss_is_measured(tiny: Path, tmp_path: Path, generate: bool) -> None:
    recipe = on_plain_rows(tiny, tmp_path, watch={**WATCH, "data": "plain", "generate": generate})
    notes = plan(recipe, Terminal(quiet=True))["sft"].notes
    assert any("only the held-out loss" in note for note in notes) == generate
    run_quietly(recipe)
    rows = [row for row in metrics(tmp_path / "run") if row["kind"] == "evaluation"]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(set(row) == {"stage", "step", "kind", "held_out_loss"} for row in rows)


def test_a_training_cannot_stop_by_what_rows_without_answers_do_not_give(tiny: Path, tmp_path: Path) -> None:
    recipe = on_plain_rows(tiny, tmp_path, watch={**WATCH, "data": "plain"}, early_stopping={"metric": "accuracy"})
    with pytest.raises(UserError, match="'accuracy' is not measured here"):
        plan(recipe, Terminal(quiet=True))


@pytest.mark.parametrize(
    ("metric", "measured"), [("pass@2", True), ("pass@9", False), ("average@2", True), ("x@2", False)]
)
def test_metrics_of_several_draws_are_those_that_so_many_draws_give(
    tiny: Path, tmp_path: Path, metric: str, measured: bool
) -> None:
    watch = {**WATCH, "n": 2, "temperature": 1.0}
    recipe = watched(tiny, tmp_path / "run", watch=watch, early_stopping={"metric": metric})
    if measured:
        plan(recipe, Terminal(quiet=True))
        return
    with pytest.raises(UserError, match="is not measured here"):
        plan(recipe, Terminal(quiet=True))


def test_every_answer_is_kept_with_the_step_it_was_drawn_at(tiny: Path, tmp_path: Path) -> None:
    run_quietly(watched(tiny, tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "sft.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert {"accuracy", "held_out_loss", "mean_length"} <= metrics(tmp_path / "run")[0].keys()
