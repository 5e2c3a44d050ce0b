"""Stages of one run, compared with one another as if they were arms."""

from pathlib import Path
from typing import Any

import pytest
from forked import Forked, write_recipe

from posttrain.comparison.result import read_result
from posttrain.comparison.runs import check, compare
from posttrain.comparison.spec import Comparison, check_comparison
from posttrain.errors import UserError
from posttrain.terminal import Terminal

QUIET = Terminal(quiet=True)
LATER = {"kind": "evaluate", "max_new_tokens": 9, "model": "train"}


def spec(recipe: Path | str, arms: dict[str, Any], **more: Any) -> Comparison:
    return check_comparison({"name": "views", "recipe": str(recipe), "arms": arms, "seeds": 2, **more})


def test_a_view_runs_nothing_and_is_compared_by_problem(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, longer=LATER, elsewhere={**LATER, "data": "other"})
    arms = {
        "a": {},
        "longer": {"view_of": "a", "stages": {"test": "longer"}},
        "elsewhere": {"view_of": "a", "stages": {"test": "elsewhere"}},
    }
    claims = [
        {"text": "longer", "metric": "test.mean_length", "of": "longer", "minus": "a", "at_least": 0.0},
        {"text": "as right", "metric": "test.accuracy", "of": "longer", "minus": "a", "at_least": -1.0},
    ]
    launcher = Forked()
    result = compare(check(spec(recipe, arms, claims=claims), tmp_path / "c", QUIET), launcher, QUIET, "")
    assert sorted(launcher.started) == ["a seed 0", "a seed 1", "base"]
    assert read_result(tmp_path / "c") == result
    assert [arm.name for arm in result.arms] == ["a", "longer", "elsewhere"]
    own, longer, elsewhere = (arm.runs[0] for arm in result.arms)
    assert longer.shares == {"test": own.shares["longer"]}
    assert {name.partition(".")[0] for name in longer.values} == {"test"}
    assert longer.values["test.mean_length"] == own.values["longer.mean_length"] > own.values["test.mean_length"]
    assert elsewhere.shares == {}  # other problems under that name: compared by seeds alone
    found = {claim.text: claim for claim in result.claims}
    assert found["longer"].effect == pytest.approx(
        sum(arm.values["longer.mean_length"] - arm.values["test.mean_length"] for arm in result.arms[0].runs) / 2
    )
    (contrast,) = [
        c for c in result.contrasts if (c.metric, c.arm, c.minus, c.family) == ("test.accuracy", "longer", "a", "first")
    ]
    assert contrast.problems == 6


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"view_of": "a"}, "needs both"),
        ({"stages": {"test": "longer"}}, "needs both"),
        ({"view_of": "a", "stages": {"test": "b"}, "set": {"lr": 1}}, "no effect on a view"),
        ({"view_of": "gone", "stages": {"test": "b"}}, "no arm that is run"),
        ({"view_of": "v", "stages": {"test": "b"}}, "no arm that is run"),
    ],
)
def test_views_of_nothing_are_refused(arm: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec("sft", {"a": {}, "v": arm})


def test_a_claim_about_a_stage_that_a_view_has_not_is_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    claims = [{"text": "t", "metric": "test.accuracy", "of": "v", "at_least": 0.0}]
    arms = {"a": {}, "v": {"view_of": "a", "stages": {"other": "test"}}}
    with pytest.raises(UserError, match="arm 'v' has no stage 'test'"):
        check(spec(recipe, arms, claims=claims), tmp_path / "c", QUIET)
    with pytest.raises(UserError, match="arm 'v' looks at stage 'gone'"):
        check(spec(recipe, {"a": {}, "v": {"view_of": "a", "stages": {"test": "gone"}}}), tmp_path / "d", QUIET)
