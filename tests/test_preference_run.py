"""Recipes over preference pairs, from a JSONL file to trained weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from running import manifest, metrics, run_quietly, save_tiny

from posttrain.errors import UserError
from posttrain.inspection import inspect
from posttrain.recipe import Recipe, check_recipe
from posttrain.stages import Context
from posttrain.terminal import Terminal
from posttrain.training.ranks import Ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"What is {n} + 1?", "chosen": f"It is {n + 1}.", "rejected": f"No idea, {n} or so, who knows."}
        for n in range(6)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(model: Path, pairs: Path, out: Path, objective: Any, **stage: Any) -> Recipe:
    fields: Mapping[str, Any] = {
        "kind": "train",
        "objective": objective,
        "steps": 5,
        "batch_size": 3,
        "micro_batch_tokens": 120,
        "lr": 1e-2,
        "schedule": "constant",
        "warmup": 0,
        **stage,
    }
    data = {"train": str(pairs)}
    return check_recipe(
        {"name": "pairs", "out": str(out), "model": str(model), "data": data, "stages": {"tuned": fields}}
    )


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(out) if row["kind"] == "train"]


def test_five_steps_of_dpo_raise_the_margin(model: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_quietly(recipe_of(model, pairs, out, {"name": "dpo", "beta": 0.5}))
    steps = steps_of(out)
    assert [row["sequences"] for row in steps] == [6] * 5
    assert steps[0]["micro_batches"] > 1
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["reward_margin"] > 1
    assert steps[-1]["reward_accuracy"] == 1
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert manifest(out)["stages"]["tuned"]["summary"]["samples"] == 6


def test_likelihood_beside_it_keeps_the_chosen_answer_likely(model: Path, pairs: Path, tmp_path: Path) -> None:
    objective = [{"name": "simpo"}, {"name": "nll", "where": "chosen"}]
    run_quietly(recipe_of(model, pairs, tmp_path / "run", objective))
    steps = steps_of(tmp_path / "run")
    assert steps[-1]["simpo/chosen_logprob"] > steps[0]["simpo/chosen_logprob"]
    assert steps[-1]["simpo/reward_margin"] > steps[0]["simpo/reward_margin"]


def test_kto_learns_from_the_two_sides_as_labelled_answers(model: Path, pairs: Path, tmp_path: Path) -> None:
    run_quietly(recipe_of(model, pairs, tmp_path / "run", {"name": "kto", "beta": 0.5}, adapter="lora"))
    steps = steps_of(tmp_path / "run")
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert steps[0]["reference_point"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["loss"] < 0.45
    assert steps[-1]["chosen_reward"] > steps[-1]["rejected_reward"]


def test_an_objective_over_pairs_refuses_rows_with_one_answer(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "What is 1 + 1?", "completion": "2"}) + "\n")
    with pytest.raises(UserError, match="no preference pair: 1 of 1 rows"):
        run_quietly(recipe_of(model, rows, tmp_path / "run", "dpo"))


def test_likelihood_alone_trains_on_the_chosen_answers(model: Path, pairs: Path, tmp_path: Path) -> None:
    run_quietly(recipe_of(model, pairs, tmp_path / "run", "nll", steps=1))
    assert steps_of(tmp_path / "run")[0]["sequences"] == 3


def test_an_inspection_shows_both_sides_of_a_pair(model: Path, pairs: Path, tmp_path: Path) -> None:
    context = Context(recipe_of(model, pairs, tmp_path / "run", "dpo"), Ranks(), Terminal(quiet=True))
    found = inspect(context, "tuned", 2)
    assert [(sample.number, sample.side) for sample in found.samples] == [
        (1, "chosen"),
        (1, "rejected"),
        (6, "chosen"),
        (6, "rejected"),
    ]
    trained = ["".join(piece.text for piece in sample.pieces if piece.trained) for sample in found.samples[:2]]
    assert trained == ["It is 1.<|im_end|>", "No idea, 0 or so, who knows.<|im_end|>"]
    assert found.numbers["samples"] == 6
