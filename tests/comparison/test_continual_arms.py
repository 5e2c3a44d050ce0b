"""Sequences of tasks as arms: what their continual stages need is kept, and their numbers are compared."""

from typing import Any

import numpy as np
import pytest

from posttrain.comparison import analysis
from posttrain.comparison.arms import arm_recipe, base_recipe, pilot_recipe, tuning_recipe
from posttrain.comparison.measures import measure
from posttrain.comparison.result import ArmResult, ArmRun
from posttrain.comparison.runs import check_claims
from posttrain.comparison.spec import Comparison
from posttrain.errors import UserError
from posttrain.recipe import Recipe, evaluations_read

FORGETTING = measure("kept", "forgetting")
FROM_BASE = {"on_reverse.init_from": "base", "chains_0.model": "base"}


def comparison(metric: str = "kept.forgetting", of: str = "sft", **options: Any) -> Comparison:
    claim = {"text": "it is kept", "metric": metric, "of": of, "at_least": 0.0}
    return Comparison(name="kept", recipe="continual-sft", arms={"sft": {"set": FROM_BASE}}, claims=[claim], **options)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return arm_recipe(comparison(), "sft")


def test_the_start_is_asked_where_the_sequence_is_compared_with_it(recipe: Recipe) -> None:
    assert "chains_0" in recipe.stages
    assert evaluations_read(recipe, "kept")["base", "chains"] == "chains_0"


def test_pilots_tuning_and_the_start_leave_the_sequence_out(recipe: Recipe) -> None:
    tuned = tuning_recipe(
        recipe.model_copy(update={"data": {**recipe.data, "held": recipe.data["sort_train"]}}), "held.x", "sft"
    )
    start = base_recipe(recipe)
    assert start is not None
    for stages in (pilot_recipe(recipe).stages, tuned.stages, start.stages):
        assert "kept" not in stages


def test_a_claim_may_be_about_forgetting_but_not_about_the_starts(recipe: Recipe) -> None:
    check_claims(comparison(), {"sft": recipe})
    with pytest.raises(UserError, match="which 'base' does not do"):
        check_claims(comparison(of="base"), {"sft": recipe})


def arm(name: str, parts: list[list[float]]) -> ArmResult:
    runs = [
        ArmRun(seed, f"{name}/seed{seed}", 1.0, {"kept.forgetting": float(np.mean(row))}, {"kept": row})
        for seed, row in enumerate(parts)
    ]
    return ArmResult(name, "continual-sft", "", {}, {}, {}, runs)


def test_forgetting_is_paired_by_problem_and_may_be_negative() -> None:
    rng = np.random.default_rng(0)
    less, more = (rng.choice([-1.0, 0.0], size=(3, 200), p=[share, 1 - share]).tolist() for share in (0.2, 0.6))
    found = analysis.value(arm("more", more), FORGETTING)
    assert found is not None
    assert -0.8 < found.low < -0.6 < found.high < -0.4
    difference = analysis.difference(arm("less", less), arm("more", more), FORGETTING)
    assert difference is not None
    assert difference.problems == 200
    assert difference.interval.low > 0.2
    assert FORGETTING in analysis.measures_of([arm("less", less)])
