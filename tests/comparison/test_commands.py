"""`posttrain compare` and `posttrain claim run` as commands: what they print and how they end."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import write_recipe
from made_up import example
from typer.testing import CliRunner, Result

from posttrain.cli import app
from posttrain.cli_comparison import _spec
from posttrain.comparison import runs
from posttrain.comparison.arms import arm_recipe
from posttrain.comparison.result import ComparisonResult
from posttrain.comparison.spec import check_comparison
from posttrain.training.loop import Interrupted

DOCS = Path(__file__).parents[2] / "docs" / "comparing.md"


def call(*arguments: str | Path) -> tuple[Result, list[dict[str, Any]]]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result, [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    out = tmp_path / "out"
    result, (plan,) = call(
        "compare", recipe, f"{recipe}:objective=dft", "--tokens", "3000", "--seeds", "2", "--out", out, "--dry-run",
        "--tune", "lr=1e-3,1e-2", "--tune-on", "other.accuracy",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    assert [arm["arm"] for arm in plan["arms"]] == ["small", "small-objective=dft"]
    assert all(int(arm["steps"]) > 1 for arm in plan["arms"])
    assert all(arm["tuning"] == "2 runs" for arm in plan["arms"])
    assert plan["estimated_seconds"] > 0
    assert not list(out.glob("*/seed*"))


def test_a_file_takes_further_arms_with_its_own_settings(tmp_path: Path) -> None:
    recipe, path = write_recipe(tmp_path), tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "small.yaml", "set": {"lr": 0.01}, "arms": {"a": {}, "small": {}}}))
    more = ["--add", f"{recipe}:objective=dft", "--add", f"{recipe}:steps=2"]
    result, (plan,) = call("compare", path, *more, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.exception
    assert [arm["arm"] for arm in plan["arms"]] == ["a", "small", "small-objective=dft", "small-steps=2"]
    again, _ = call("compare", path, "--add", recipe, "--out", tmp_path / "out", "--dry-run")
    assert "has an arm 'small' already" in str(again.exception)


@pytest.mark.parametrize("arm", ["srft", "uft", "relift", "bread", "srl", "chord-phi"])
def test_the_continuum_takes_the_recipes_that_are_no_arms_of_its_own(arm: str) -> None:
    spec = _spec(["continuum"], {}, [f"{arm}:train.lr=3e-4"])
    assert len(spec.arms) == 11
    recipe = arm_recipe(spec, f"{arm}-lr=3e-4")
    assert recipe.stages["test"] == arm_recipe(spec, "luffy").stages["test"]
    assert recipe.stages["train"].lr == 3e-4  # type: ignore[union-attr]


def finished(monkeypatch: pytest.MonkeyPatch, result: ComparisonResult | Exception) -> None:
    def compare(*arguments: Any) -> ComparisonResult:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(runs, "compare", compare)


def test_failed_runs_are_listed_and_make_the_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(monkeypatch, example(problems=4))
    result, lines = call("compare", write_recipe(tmp_path), "--out", tmp_path / "out")
    assert result.exit_code == 1
    (failure,) = [line for line in lines if line["event"] == "failure"]
    assert failure["reason"] == "exit code 1"
    assert lines[-1]["page"].endswith("comparison.html")


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(monkeypatch, Interrupted())
    result, lines = call("compare", write_recipe(tmp_path), "--out", tmp_path / "out")
    assert (result.exit_code, lines[-1]["event"]) == (130, "interrupted")


def test_a_claim_is_run_and_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path)
    claim = {"text": "t", "metric": "test.accuracy", "of": "a", "at_least": 0.0}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "small.yaml", "arms": {"a": {}}, "claims": [claim]}))
    finished(monkeypatch, example(problems=4))
    result, lines = call("claim", "run", path, "--claims", tmp_path / "claims", "--out", tmp_path / "out")
    assert [line["verdict"] for line in lines if line["event"] == "claim"][:2] == ["supported", "inconclusive"]
    assert (tmp_path / "claims" / "36-asft.json").is_file()
    assert result.exit_code == 1, "one of its runs had failed"


def test_a_comparison_without_claims_is_no_claim(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: small.yaml\narms: {a: {}}\n")
    result, _ = call("claim", "run", path)
    assert "there are no claims in it" in str(result.exception)


def test_the_examples_of_the_page_are_valid() -> None:
    first, *claims = (yaml.safe_load(block.partition("```")[0]) for block in DOCS.read_text().split("```yaml\n")[1:])
    assert len(claims) == 3
    for more in claims:
        named = {
            arm
            for rule in more["claims"]
            for arm in (rule["of"], rule["minus"], rule.get("over"), *rule.get("than", []))
        }
        arms = first["arms"] | {name: {"recipe": "sft"} for name in named - {None}}
        assert check_comparison({"name": "page", **first, "arms": arms, **more}).claims
