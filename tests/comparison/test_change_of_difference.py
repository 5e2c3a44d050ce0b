"""Claims with `than`: how far one difference is above another (a gap before and after)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import example

from posttrain.comparison.analysis import change_of_difference, difference
from posttrain.comparison.claims import decided, write_claims
from posttrain.comparison.measures import measure
from posttrain.comparison.result import ArmResult, ArmRun, ClaimResult, from_json
from posttrain.comparison.spec import Claim, check_comparison
from posttrain.errors import UserError

ACCURACY = measure("test", "accuracy")
ZERO = [[0.0] * 40] * 3


def arm(name: str, shares: Any) -> ArmResult:
    """An arm with `[S, P]` shares."""
    rows = np.asarray(shares, dtype=float).tolist()
    runs = [
        ArmRun(seed, "", 1.0, {"test.accuracy": float(np.mean(row))}, {"test": row}) for seed, row in enumerate(rows)
    ]
    return ArmResult(name, "sft", "", {}, {}, {}, runs)


def drawn(seed: int) -> list[ArmResult]:
    rng = np.random.default_rng(seed)
    return [arm(name, rng.random((3, 30)) < chance) for name, chance in zip("abcd", (0.7, 0.65, 0.5, 0.3), strict=True)]


def test_it_is_the_gap_after_less_the_gap_before() -> None:
    strong, weak = arm("s", [[1, 1, 1, 0]] * 3), arm("w", [[0, 0, 1, 0]] * 3)
    after = arm("s2", [[1, 1, 1, 1]] * 3), arm("w2", [[1, 0, 1, 1]] * 3)
    found = change_of_difference(*after, (strong, weak), ACCURACY)
    assert found is not None
    assert found.estimate == pytest.approx(0.25 - 0.5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_swapping_the_pairs_changes_the_sign_and_nothing_else(seed: int) -> None:
    a, b, c, d = drawn(seed)
    there, back = change_of_difference(a, b, (c, d), ACCURACY), change_of_difference(c, d, (a, b), ACCURACY)
    assert there is not None
    assert back is not None
    assert there.estimate == pytest.approx(-back.estimate)
    assert there.high - there.low == pytest.approx(back.high - back.low, rel=0.05)


def test_beside_no_gap_it_is_the_difference_itself() -> None:
    a, b, c, _ = drawn(0)
    found, plain = change_of_difference(a, b, (c, c), ACCURACY), difference(a, b, ACCURACY)
    assert plain is not None
    assert found == plain.interval


def test_the_start_stands_beside_every_seed() -> None:
    a, b, c, _ = drawn(0)
    start = arm("base", np.zeros((1, 30)))
    found, same = (change_of_difference(a, b, (c, end), ACCURACY) for end in (start, arm("d", np.zeros((3, 30)))))
    assert found == same


def test_a_cost_is_over_seeds_alone() -> None:
    numbers = {"a": [5.0, 6.1, 7.0], "b": [1.0, 2.0, 3.0], "c": [2.0, 2.0, 2.1], "d": [1.0, 1.1, 1.0]}
    arms = {
        name: replace(
            arm(name, ZERO), runs=[ArmRun(at, "", 1.0, {"train.seconds": each}) for at, each in enumerate(row)]
        )
        for name, row in numbers.items()
    }
    rule = Claim(text="t", metric="train.seconds", of="a", minus="b", than=("c", "d"), at_least=2.0)
    found = decided([rule], arms)[0]
    assert found.effect == pytest.approx((4.0 + 4.1 + 4.0) / 3 - (1.0 + 0.9 + 1.1) / 3)
    assert (found.verdict, found.seeds) == ("supported", [0, 1, 2])


def test_it_may_be_twice_as_large_as_any_difference_and_is_never_certain() -> None:
    ones = [[1.0] * 40] * 3
    found = change_of_difference(arm("a", ones), arm("b", ZERO), (arm("c", ZERO), arm("d", ones)), ACCURACY)
    assert found is not None
    assert (found.estimate, found.high) == (2.0, 2.0)
    assert found.low < 2.0


def claim(**more: Any) -> Claim:
    return Claim(text="t", metric="test.accuracy", of="a", minus="b", than=("c", "d"), **more)


def decide(rule: Claim) -> ClaimResult:
    return decided([rule], {found.name: found for found in drawn(0)})[0]


def test_the_rule_is_decided_by_the_whole_interval() -> None:
    assert decide(claim(at_least=-0.9)).verdict == "supported"
    assert decide(claim(at_most=-0.9)).verdict == "not supported"
    found = decide(claim(at_most=-0.15))
    assert (found.verdict, set(found.arms), found.than) == ("inconclusive", set("abcd"), ("c", "d"))
    assert "accuracy, test, a minus b, less c minus d: " in found.sentence
    assert " points (95 % interval " in found.sentence
    assert found.sentence.endswith("claimed: −15.0 points or less")


def test_an_arm_that_did_not_run_leaves_it_open() -> None:
    found = decided([claim(at_least=0.0)], {found.name: found for found in drawn(0)[:3]})[0]
    assert (found.verdict, found.effect, found.arms["d"]) == ("inconclusive", None, [])


def test_its_result_survives_the_file_with_both_differences(tmp_path: Path) -> None:
    result = example(problems=4)
    told = replace(result.claims[0], of="dft", minus="sft", than=("asft", "sft"), metric="test.accuracy")
    result = replace(result, claims=[told])
    assert from_json(result.to_json()).claims[0].than == ("asft", "sft")
    kept = write_claims(result, tmp_path).read_text()
    assert '"arm": "asft", "minus": "sft"' in kept


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"minus": None}, "it wants 'minus', and no 'over'"),
        ({"over": "sft"}, "it wants 'minus', and no 'over'"),
        ({"than": ["sft"]}, "than"),
        ({"than": ["sft", "gone"]}, "about arm 'gone', which is none"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], told: str) -> None:
    rule = {"text": "t", "metric": "test.accuracy", "of": "dft", "minus": "asft", "than": ["dft", "sft"], "at_least": 0}
    arms = {"sft": None, "dft": None, "asft": None}
    with pytest.raises(UserError, match=told):
        check_comparison({"name": "x", "recipe": "sft", "arms": arms, "claims": [{**rule, **more}]})
