"""Sequences of tasks as arms: what their continual stages need is kept, and their numbers are compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from posttrain.comparison import analysis
from posttrain.comparison.arms import arm_recipe, base_recipe, pilot_recipe, tuning_recipe
from posttrain.comparison.claim_figure import WIDTH, claim_figure
from posttrain.comparison.measures import limits, measure
from posttrain.comparison.result import ArmResult, ArmRun, Estimate, from_json
from posttrain.comparison.runs import check_claims
from posttrain.comparison.spec import Comparison
from posttrain.comparison.wording import ends
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


def test_a_change_below_0_has_its_whole_interval_and_a_place_in_the_figure() -> None:
    worse = Estimate(FORGETTING.name, "sft", -0.2, -0.3, -0.1, None, 3)
    assert ends(FORGETTING, worse) == (-0.3, -0.1)
    share = measure("test", "accuracy")
    assert ends(share, Estimate(share.name, "sft", 0.1, -0.2, 1.3, None, 2)) == (0.0, 1.0)
    assert limits(measure("test", "gap/compiles")) == (-1.0, 1.0)
    example = json.loads(Path(__file__).with_name("example.json").read_text(encoding="utf-8"))
    result = from_json(example)
    about = replace(result.claims[0], metric=FORGETTING.name, arms={"sft": [-0.3, -0.2, -0.1]}, minus=None)
    figure = claim_figure(replace(result, claims=[about], estimates=[worse]))
    for circle in ElementTree.fromstring(figure).iter("{http://www.w3.org/2000/svg}circle"):
        assert 172 <= float(circle.get("cx", 0)) <= WIDTH - 84


def test_two_arms_may_differ_in_what_they_forget_by_more_than_all() -> None:
    gained, lost = arm("a", [[1.0] * 30] * 3), arm("b", [[-1.0] * 30] * 3)
    found = analysis.difference(gained, lost, FORGETTING)
    assert found is not None
    assert found.interval.low < found.interval.estimate == found.interval.high == 2.0
