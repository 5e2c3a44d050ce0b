"""Curate stages whose functions let a model answer, and train stages that are left with nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from running import manifest, run_quietly, save_tiny, small_recipe, weights

from posttrain.errors import UserError
from posttrain.policy import Policy
from posttrain.recipe import Recipe
from posttrain.stages.answers import asked_models

MEASURE = {"name": "right_share", "n": 4, "max_new_tokens": 24}
KEPT = {"kind": "curate", "data": "train", "models": ["base"], "steps": [MEASURE, "rollout_filter"]}
TRAIN = {"kind": "train", "data": "kept", "steps": 1, "batch_size": 4}


def recipe(out: Path, model: Path | str = "tiny", **stages: dict[str, Any]) -> Recipe:
    """Twenty chains; the shipped model answers some of them, one that was made at random none."""
    found = small_recipe(Path(model), out, {"kept": KEPT, **stages})
    return found.model_copy(update={"data": {"train": found.data["train"].model_copy(update={"count": 20})}})


def rows(out: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / file).read_text().splitlines()]


def test_what_is_kept_is_what_some_answer_got_right(tmp_path: Path) -> None:
    run_quietly(recipe(tmp_path / "run"))
    answers, kept = rows(tmp_path / "run", "samples/kept.jsonl"), rows(tmp_path / "run", "data/kept.jsonl")
    right: dict[str, list[float]] = {}
    for answer in answers:
        right.setdefault(answer["prompt"], []).append(answer["value"])
    assert len(right) == 20
    assert {len(values) for values in right.values()} == {4}
    assert {row["prompt"][-1]["content"]: row["scalars"]["right_share"] for row in kept} == {
        prompt: sum(values) / 4 for prompt, values in right.items() if any(values)
    }
    assert 0 < len(kept) < 20
    summary = manifest(tmp_path / "run")["stages"]["kept"]["summary"]
    assert (summary["after_1_right_share"], summary["after_2_rollout_filter"]) == (20, len(kept))


def test_nothing_left_stops_a_run_that_does_not_say_otherwise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"left no sample.*when_empty: skip"):
        run_quietly(recipe(tmp_path / "run", save_tiny(tmp_path / "model")))


def test_nothing_left_skips_the_training_loudly_and_leaves_the_weights(tmp_path: Path) -> None:
    """The sheet's check 6; a stage behind it goes on from there."""
    model, out = save_tiny(tmp_path / "model"), tmp_path / "run"
    stages = {"kept": {**KEPT, "when_empty": "skip"}, "first": TRAIN, "second": {**TRAIN, "init_from": "first"}}
    run_quietly(recipe(out, model, **stages))
    before = Policy.load(str(model)).model.state_dict()
    for stage in ("first", "second"):
        after = weights(out, stage)
        assert all(torch.equal(after[name], before[name]) for name in after)
        summary = manifest(out)["stages"][stage]["summary"]
        assert summary["steps"] == 0
        assert "kept kept no sample" in summary["note"]
    report = (out / "report.html").read_text()
    assert "first not trained: kept kept no sample, the weights are those of &#39;base&#39;" in report


def test_a_second_filter_behind_an_empty_one_asks_nobody(tmp_path: Path) -> None:
    again = {**KEPT, "data": "kept", "when_empty": "skip"}
    stages = {"kept": {**KEPT, "when_empty": "skip"}, "again": again, "first": {**TRAIN, "data": "again"}}
    run_quietly(recipe(tmp_path / "run", save_tiny(tmp_path / "model"), **stages))
    assert rows(tmp_path / "run", "data/again.jsonl") == []
    assert "again kept no sample" in manifest(tmp_path / "run")["stages"]["first"]["summary"]["note"]


def test_the_training_goes_on_with_what_other_data_there_are(tmp_path: Path) -> None:
    mixed = {"mix": [{"stage": "kept"}, {"task": "chains", "count": 8, "seed": 3}]}
    stages = {"kept": {**KEPT, "when_empty": "skip"}, "first": {**TRAIN, "data": "mixed"}}
    found = recipe(tmp_path / "run", save_tiny(tmp_path / "model"), **stages)
    content = found.model_dump()
    content["data"]["mixed"] = mixed
    run_quietly(Recipe.model_validate(content))
    assert manifest(tmp_path / "run")["stages"]["first"]["summary"]["steps"] == 1


def test_questions_without_right_answers_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Say hello.", "completion": "Hello."}\n')
    content = recipe(tmp_path / "run").model_dump()
    content["data"]["train"] = {"path": str(file)}
    with pytest.raises(UserError, match="data 'train' has no 'answer'"):
        run_quietly(Recipe.model_validate(content))


def test_answers_that_do_not_fit_are_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked_models, "load_policy", lambda *_: pytest.fail("loaded"))
    content = recipe(tmp_path / "run").model_dump()
    content["stages"]["kept"]["steps"][0]["max_new_tokens"] = 100_000
    with pytest.raises(UserError, match="lower max_new_tokens"):
        run_quietly(Recipe.model_validate(content))
