"""Comparisons from end to end, with processes: cut off, gone on with, tuned, failing, on a budget."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Forked, small, write_recipe

from posttrain.comparison.arms import job
from posttrain.comparison.claims import read_claims, write_claims
from posttrain.comparison.launching import LocalProcesses, RayTasks
from posttrain.comparison.measures import measure
from posttrain.comparison.result import ComparisonResult, read_result
from posttrain.comparison.running import run_jobs
from posttrain.comparison.runs import check, compare
from posttrain.comparison.spec import Comparison
from posttrain.errors import UserError
from posttrain.terminal import Terminal
from posttrain.training.loop import Interrupted

QUIET = Terminal(quiet=True)


def run(spec: Comparison, root: Path, launcher: Forked | LocalProcesses | None = None) -> ComparisonResult:
    return compare(check(spec, root, QUIET), launcher or Forked(), QUIET, "posttrain compare")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def made(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ComparisonResult, list[str]]:
    """A comparison that was run once: its folder, what it came to, what was started."""
    claims: list[dict[str, Any]] = [
        {"text": "it takes time", "metric": "train.seconds", "of": "dft", "at_least": 0.0},
        {"text": "it is right everywhere", "metric": "test.accuracy", "of": "nll", "at_least": 0.99},
        {"text": "it is further from the start", "metric": "test.kl", "of": "dft", "minus": "nll", "at_least": 99.0},
    ]
    root, launcher = tmp_path_factory.mktemp("made") / "small", Forked()
    return root, run(small(recipe, claims=claims), root, launcher), launcher.started


def test_every_arm_is_run_with_every_seed_and_the_start_once(
    made: tuple[Path, ComparisonResult, list[str]],
) -> None:
    _, result, started = made
    assert sorted(started) == ["base", "dft seed 0", "dft seed 1", "nll seed 0", "nll seed 1"]
    assert [arm.name for arm in result.arms] == ["nll", "dft"]
    assert all([run.seed for run in arm.runs] == [0, 1] for arm in result.arms)
    assert result.base is not None
    assert list(result.base.runs[0].shares) == ["test"]
    assert not result.failures


def test_the_result_and_its_page_are_written(made: tuple[Path, ComparisonResult, list[str]]) -> None:
    root, result, _ = made
    assert read_result(root) == result
    assert (root / "comparison.html").is_file()
    nll = result.arms[0].runs[0]
    assert nll.curves["train"]["step"] == [1, 2, 3]
    assert nll.values["train.input_tokens"] == nll.curves["train"]["input_tokens"][-1]
    assert len(result.problems["test"]) == len(nll.shares["test"]) == 6
    assert {each.metric for each in result.contrasts} >= {"test.accuracy", "test.kl", "train.seconds"}


def test_arms_share_their_tokens(made: tuple[Path, ComparisonResult, list[str]]) -> None:
    root, _, _ = made
    assert len(list((root / ".cache").iterdir())) == 1
    assert (root / "nll" / ".cache").resolve() == (root / ".cache").resolve()


def test_claims_are_decided_and_kept(made: tuple[Path, ComparisonResult, list[str]], tmp_path: Path) -> None:
    _, result, _ = made
    verdicts = [claim.verdict for claim in result.claims]
    assert verdicts[1:] == ["not supported", "not supported"]
    assert [len(claim.arms[claim.of]) for claim in result.claims] == [2, 2, 2]
    path = write_claims(result, tmp_path)
    assert {"paper", "claims", "seconds", "versions", "machine", "comparison"} <= set(json.loads(path.read_text()))
    assert [row["verdict"] for row in read_claims(tmp_path)] == verdicts


def test_a_second_call_runs_nothing_again_and_a_new_seed_alone(
    made: tuple[Path, ComparisonResult, list[str]], recipe: Path
) -> None:
    root, result, _ = made
    launcher = Forked()
    again = run(small(recipe, seeds=3), root, launcher)
    assert sorted(launcher.started) == ["dft seed 2", "nll seed 2"]
    assert [run.values for run in again.arms[1].runs[:2]] == [run.values for run in result.arms[1].runs]


def test_other_settings_are_refused_in_the_same_folder(
    made: tuple[Path, ComparisonResult, list[str]], recipe: Path
) -> None:
    root, _, _ = made
    with pytest.raises(UserError, match="made with other settings; give another folder with --out"):
        run(small(recipe, set={"lr": 0.5}), root)


def test_cut_off_and_called_again_it_comes_to_the_same(
    made: tuple[Path, ComparisonResult, list[str]], recipe: Path, tmp_path: Path
) -> None:
    _, whole, _ = made
    root = tmp_path / "small"

    def interrupt() -> None:
        while not list(root.glob("*/seed*/metrics.jsonl")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        run(small(recipe), root)
    states = [json.loads(path.read_text())["status"] for path in root.glob("*/seed*/manifest.json")]
    assert "running" not in states
    result = run(small(recipe), root)
    for before, after in zip(whole.arms, result.arms, strict=True):
        for one, other in zip(before.runs[:2], after.runs, strict=True):
            assert one.shares == other.shares
            assert one.values["train.loss"] == other.values["train.loss"]


NOT_A_NUMBER = '''
from posttrain.objectives.objective import objective


@objective("not_a_number")
def not_a_number(scores, batch):
    """Fails at once."""
    return scores.logprobs * float("nan")
'''


def test_an_arm_that_fails_does_not_lose_the_others(recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    trained = tmp_path / "trained.yaml"  # without evaluations there is no start to ask, and costs are compared alone
    trained.write_text(yaml.safe_dump({**content, "stages": {"train": content["stages"]["train"]}}))
    broken = tmp_path / "broken.py"
    broken.write_text(NOT_A_NUMBER)
    arms = {"nll": {}, "broken": {"set": {"imports": [str(broken)], "objective": "not_a_number"}}}
    result = run(small(trained, arms=arms, seeds=1), tmp_path / "small", LocalProcesses(2))
    (failure,) = result.failures
    assert (failure.arm, failure.seed) == ("broken", 0)
    assert "not finite" in failure.reason
    assert any("not finite" in line for line in failure.output)
    assert [arm.name for arm in result.arms] == ["nll"]
    assert "arm 'broken' has no finished run and is left out" in result.notes
    assert result.base is None


def test_every_arm_is_tuned_alike_on_validation_data(recipe: Path, tmp_path: Path) -> None:
    launcher = Forked()
    spec = small(recipe, seeds=1, tune={"lr": [1e-5, 0.01]}, tune_on="other.log_likelihood")
    result = run(spec, tmp_path / "small", launcher)
    assert sum("tune" in label for label in launcher.started) == 4
    for arm in result.arms:
        tried = {trial.set["lr"]: trial for trial in result.trials if trial.arm == arm.name}
        best = max(tried.values(), key=lambda trial: trial.value)
        assert [trial.chosen for trial in tried.values()].count(True) == 1
        assert best.chosen
        assert arm.tuned == best.set
        assert "other" not in arm.runs[0].shares


def test_what_has_no_better_side_is_not_tuned_on(recipe: Path, tmp_path: Path) -> None:
    assert measure("other", "perplexity").larger_is_better is False
    spec = small(recipe, tune={"lr": [1e-5, 0.01]}, tune_on="train.loss")
    with pytest.raises(UserError, match=r"tune_on 'train\.loss': nothing says which way"):
        check(spec, tmp_path / "small", QUIET)


def test_a_budget_of_seconds_is_measured_first_and_one_of_tokens_is_counted(recipe: Path, tmp_path: Path) -> None:
    launcher = Forked()
    found = run(small(recipe, seeds=1, budget={"seconds": 0.5}), tmp_path / "seconds", launcher)
    assert launcher.started[:2] == ["nll pilot", "dft pilot"]
    for arm in found.arms:
        assert arm.steps["train"] == max(1, round(0.5 / found.budget.pilot[arm.name]))
    checked = check(small(recipe, seeds=1, budget={"tokens": 3000}), tmp_path / "tokens", QUIET)
    per_step = float(checked.plans["nll"]["train"].numbers["tokens_per_step"])
    found = compare(checked, launcher, QUIET, "")
    spent = found.arms[0].runs[0].values["train.input_tokens"]
    assert abs(spent - 3000) <= per_step


def test_ray_runs_the_same_jobs(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    import ray

    spec = small(recipe, arms={"nll": {}}, seeds=1)
    checked = check(spec, tmp_path / "small", QUIET)
    try:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
        launcher = RayTasks()
        failures = run_jobs([job(checked.root, "nll", 0, "run", checked.recipes["nll"])], launcher, QUIET)
    finally:
        ray.shutdown()
    assert (failures, launcher.jobs) == ([], 1)
    assert json.loads((tmp_path / "small/nll/seed0/manifest.json").read_text())["status"] == "finished"
