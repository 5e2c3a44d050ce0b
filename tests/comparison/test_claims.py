"""Claims: the decision rule, and the file that they are kept in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import example
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.comparison.claims import decided, read_claims, shipped_claims, write_claims
from posttrain.comparison.result import ArmResult, ArmRun, ClaimResult
from posttrain.comparison.spec import Claim
from posttrain.comparison.tables import claim_row
from posttrain.errors import UserError


def arm(name: str, numbers: list[float]) -> ArmResult:
    runs = [ArmRun(seed, "", 1.0, {"train.seconds": number}) for seed, number in enumerate(numbers)]
    return ArmResult(name, "sft", "", {}, {}, {}, runs)


def verdict(numbers: list[float], *, minus: list[float] | None = None, **rule: float) -> ClaimResult:
    arms = {"a": arm("a", numbers)} | ({"b": arm("b", minus)} if minus is not None else {})
    claim = Claim(text="t", metric="train.seconds", of="a", minus=None if minus is None else "b", **rule)
    return decided([claim], arms)[0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"at_least": 5.0}, "supported"),
        ({"at_least": 15.0}, "not supported"),
        ({"at_least": 10.0}, "inconclusive"),
        ({"at_most": 15.0}, "supported"),
        ({"at_most": 5.0}, "not supported"),
        ({"at_most": 10.0}, "inconclusive"),
    ],
)
def test_the_whole_interval_decides(rule: dict[str, float], expected: str) -> None:
    assert verdict([9.9, 10.0, 10.1], **rule).verdict == expected


def test_a_difference_is_decided_by_its_own_interval() -> None:
    found = verdict([11.0, 12.1, 12.9], minus=[1.0, 2.0, 3.0], at_least=9.0)
    assert found.verdict == "supported"
    assert found.effect == pytest.approx(10.0)
    assert found.arms == {"a": [11.0, 12.1, 12.9], "b": [1.0, 2.0, 3.0]}


def test_one_seed_decides_nothing_about_a_cost() -> None:
    found = verdict([10.0], at_least=0.0)
    assert (found.verdict, found.interval) == ("inconclusive", [None, None])
    assert found.sentence == "inconclusive: time, train, a: 10 s (one seed: no interval); claimed: 0.0 s or more"


def test_the_table_says_points_of_a_difference_and_per_cent_of_a_value_or_a_gap() -> None:
    row = {"name": "n", "text": "t", "metric": "test.accuracy", "of": "a", "seeds": [0, 1, 2], "verdict": "supported"}
    row |= {"effect": 0.197, "interval": [-0.014, 0.251]}
    shown = [claim_row(row | kind) for kind in ({"minus": None}, {"minus": "b"}, {"minus": "b", "over": "c"})]
    assert [each["effect"] for each in shown] == ["19.7\u202f%", "+19.7 points", "19.7\u202f%"]
    assert shown[1]["95 % interval"] == "−1.4 to +25.1"
    assert claim_row(row | {"minus": "b", "interval": [None, None]})["95 % interval"] == ""


def test_an_arm_without_a_finished_run_leaves_the_claim_open() -> None:
    claim = Claim(text="t", metric="train.seconds", of="a", minus="gone", at_least=0.0)
    found = decided([claim], {"a": arm("a", [1.0, 2.0])})[0]
    assert (found.verdict, found.effect) == ("inconclusive", None)
    assert "no finished run has train.seconds of a minus gone" in found.sentence


def share_of_gap(of: list[float], minus: list[float], over: list[float], **rule: float) -> ClaimResult:
    arms = {name: arm(name, numbers) for name, numbers in {"a": of, "b": minus, "c": over}.items()}
    return decided([Claim(text="t", metric="train.seconds", of="a", minus="b", over="c", **rule)], arms)[0]


def test_a_share_of_a_gap_is_what_an_arm_adds_of_what_the_ceiling_adds() -> None:
    found = share_of_gap([47.0, 46.9, 46.8], [30.0, 30.1, 29.9], [48.0, 48.1, 47.9], at_least=0.7)
    assert found.effect == pytest.approx(0.9388888889)
    assert (found.verdict, found.over) == ("supported", "c")
    assert found.arms == {"a": [47.0, 46.9, 46.8], "b": [30.0, 30.1, 29.9], "c": [48.0, 48.1, 47.9]}
    assert "a of the gap from b to c: 93.9\u202f% (95 % interval" in found.sentence
    assert found.sentence.endswith("claimed: 70.0\u202f% or more")


def test_without_a_sure_gap_no_share_of_it_is_decided() -> None:
    found = share_of_gap([12.0, 12.1, 11.9], [10.0, 11.0, 9.0], [10.1, 9.0, 11.1], at_least=0.7)
    assert (found.verdict, found.interval) == ("inconclusive", [None, None])
    assert "it is not sure that c is above b" in found.sentence


def test_a_claim_file_holds_what_the_catalogue_and_the_figure_need(tmp_path: Path) -> None:
    path = write_claims(example(problems=4), tmp_path)
    content = json.loads(path.read_text())
    assert path.name == "36-asft.json"
    assert {"text", "metric", "seeds", "arms", "effect", "interval", "verdict"} <= set(content["claims"][0])
    assert content["comparison"]["arms"]
    assert "2 supported" not in CliRunner().invoke(app, ["methods", "--claims", str(tmp_path)]).stdout
    assert (
        "1 supported, 1 not supported, 1 inconclusive"
        in CliRunner().invoke(app, ["methods", "--claims", str(tmp_path), "--json"]).stdout
    )


def test_all_claims_are_shown_as_one_table(tmp_path: Path) -> None:
    write_claims(example(problems=4), tmp_path)
    shown = CliRunner().invoke(app, ["claim", "show", "--claims", str(tmp_path)])
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(row["name"], row["verdict"]) for row in rows] == [
        ("36-asft", "supported"),
        ("36-asft", "inconclusive"),
        ("36-asft", "not supported"),
    ]


def test_claims_are_shown_by_their_names(tmp_path: Path) -> None:
    write_claims(example(problems=4), tmp_path)
    write_claims(replace(example(problems=4), name="09-other"), tmp_path)
    for name in ("36", "asft", "36-asft"):
        assert {row["name"] for row in read_claims(tmp_path, [name])} == {"36-asft"}
    assert {row["name"] for row in read_claims(tmp_path, ["9", "36"])} == {"36-asft", "09-other"}
    with pytest.raises(UserError, match=r"is called '36-asf': did you mean '36-asft'\?"):
        read_claims(tmp_path, ["36-asf"])


def test_a_folder_without_claims_is_no_empty_table(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["claim", "show", "--claims", str(tmp_path)])
    assert isinstance(shown.exception, UserError)
    assert "there are no claims in" in str(shown.exception)


def test_a_file_that_holds_no_claims_is_named(tmp_path: Path) -> None:
    (tmp_path / "36-asft.json").write_text("{}")
    with pytest.raises(UserError, match=r"36-asft\.json' is no file of claims"):
        read_claims(tmp_path)


def test_a_claims_file_does_not_say_where_the_package_is_installed(tmp_path: Path) -> None:
    """What is kept in a repository names no machine."""
    beside = next(iter(shipped_claims().values())).parent / "recipes" / "noisy-sft.yaml"
    assert beside.is_file()
    result = replace(example(), spec={**example().spec, "recipe": str(beside), "arms": {"a": {"recipe": str(beside)}}})
    kept = json.loads(write_claims(result, tmp_path).read_text())["comparison"]["spec"]
    assert kept["recipe"] == kept["arms"]["a"]["recipe"] == "recipes/noisy-sft.yaml"
