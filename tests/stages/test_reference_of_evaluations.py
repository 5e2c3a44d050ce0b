"""How far an evaluated model is from another one: `reference` of an evaluate stage."""

import json
import math
from typing import Any

import pytest
import running

STAGES = {
    "before": {"kind": "evaluate", "max_new_tokens": 6, "reference": "base"},
    "sft": {"kind": "train", "steps": 4, "batch_size": 15, "lr": 0.02, "warmup": 0, "schedule": "constant"},
    "after": {"kind": "evaluate", "max_new_tokens": 6, "model": "sft", "reference": "base"},
    "alone": {"kind": "evaluate", "max_new_tokens": 6, "model": "sft"},
}


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of every evaluation of a run."""
    folder = tmp_path_factory.mktemp("drift")
    running.run_quietly(running.small_recipe(running.save_tiny(folder / "model"), folder / "run", STAGES))
    names = ("before", "after", "alone")
    return {name: json.loads((folder / "run" / "results" / f"{name}.json").read_text())["metrics"] for name in names}


def test_a_model_is_not_far_from_itself(metrics: dict[str, dict[str, Any]]) -> None:
    assert metrics["before"]["kl"] == pytest.approx(0, abs=1e-6)


def test_training_moves_a_model_away_and_makes_it_surer(metrics: dict[str, dict[str, Any]]) -> None:
    assert metrics["after"]["kl"] > 0.05
    vocabulary = 259
    assert 0 < metrics["after"]["entropy"] < metrics["before"]["entropy"] < math.log(vocabulary) + 0.5


def test_without_a_reference_nothing_is_compared(metrics: dict[str, dict[str, Any]]) -> None:
    assert not {"kl", "entropy"} & metrics["alone"].keys()
