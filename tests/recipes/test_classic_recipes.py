"""The shipped recipes of papers 22 and 36 and of the classics, made small and run from end to end."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from running import manifest, metrics, run_quietly

from posttrain.objectives import build_objective
from posttrain.recipe import Recipe, check_recipe, read_recipe, shipped_recipes

ON_DEMONSTRATIONS = [
    "dft",
    "asft",
    "sft-kl",
    "otr",
    "otr-exact",
    "neftune",
    "label-smoothing",
    "focal",
    "gem",
    "iw-sft",
    "sft-phi",
]
ON_PAIRS = ["preference", "dpo", "ipo", "simpo", "orpo", "cpo"]
ON_LABELS = ["kto", "unlikelihood"]
DISTILLED = ["distill", "seq-distill"]
EVERY = [*ON_DEMONSTRATIONS, *ON_PAIRS, *ON_LABELS, *DISTILLED]

KEPT = "[{task: {name: logic, part: test}, count: 2, seed: 2}]"
SMALL = ["steps=2", "batch_size=4", "data.train.count=16", f"data.kept.mix={KEPT}", "data.test.count=3"]
SMALL += ["data.longer.count=2", "kept.max_new_tokens=16", "before_kept.max_new_tokens=16"]


def run_small(name: str, out: Path, *more: str) -> Path:
    run_quietly(read_recipe(name, [*SMALL, *more, f"out={out}"]))
    assert manifest(out)["status"] == "finished"
    return out


def run_only(stage: str, name: str, out: Path, **more: Any) -> Path:
    """One stage of a small recipe, without those before and after it."""
    recipe = read_recipe(name, [*SMALL, f"out={out}"]).model_dump(mode="json")
    recipe["stages"] = {stage: recipe["stages"][stage]}
    run_quietly(check_recipe({**recipe, **more}))
    return out


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(out) if row["kind"] == "train" and row["stage"] == "train"]


def result(out: Path, stage: str) -> dict[str, Any]:
    return json.loads((out / "results" / f"{stage}.json").read_text())["metrics"]  # type: ignore[no-any-return]


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / f"{stage}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ON_DEMONSTRATIONS)
def test_a_loss_on_demonstrations_trains(name: str, tmp_path: Path) -> None:
    steps = steps_of(run_only("train", name, tmp_path / "run"))
    assert len(steps) == 2
    assert all(0 < row["grad_norm"] < 100 for row in steps)


def test_asft_is_evaluated_on_all_that_the_comparison_reads(tmp_path: Path) -> None:
    out = run_small("asft", tmp_path / "run")
    first, second = steps_of(out)
    assert first["forward_kl"] == pytest.approx(0, abs=1e-6)
    assert second["forward_kl"] > 0
    for stage in ("test", "longer", "kept"):
        assert {"accuracy", "kl", "entropy"} <= result(out, stage).keys()
    assert result(out, "test")["kl"] > 0


@pytest.fixture(scope="module")
def preference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_small("preference", tmp_path_factory.mktemp("preference") / "run")


def test_pairs_are_right_and_wrong_answers_to_the_same_question(preference: Path) -> None:
    answers = {(row["prompt"][0]["content"], row["response"][0]["content"]): row for row in rows(preference, "answers")}
    assert {row["meta"]["value"] for row in answers.values()} == {0.0, 1.0}
    pairs = rows(preference, "feedback")
    assert 1 < len(pairs) <= 2 * 16
    for pair in pairs:
        question = pair["prompt"][0]["content"]
        assert answers[question, pair["response"][0]["content"]]["meta"]["value"] == 1
        assert answers[question, pair["rejected"][0]["content"]]["meta"]["value"] == 0


def test_on_its_own_the_base_of_the_preference_recipes_trains_on_right_answers(preference: Path) -> None:
    assert [row["sequences"] for row in steps_of(preference)] == [4, 4]


@pytest.mark.parametrize("name", [name for name in ON_PAIRS if name != "preference"])
def test_a_loss_on_pairs_trains(name: str, preference: Path, tmp_path: Path) -> None:
    data = {"feedback": {"path": str(preference / "data" / "feedback.jsonl"), "shape": "sample"}}
    steps = steps_of(run_only("train", name, tmp_path / "run", data=data))
    assert [row["sequences"] for row in steps] == [8, 8]
    assert all(row["grad_norm"] > 0 for row in steps)
    assert any(key.endswith("reward_margin") for key in steps[0])


@pytest.mark.parametrize(("name", "scalar", "right"), [("kto", "chosen", 1.0), ("unlikelihood", "negative", 0.0)])
def test_a_loss_on_labelled_answers_trains(
    name: str, scalar: str, right: float, preference: Path, tmp_path: Path
) -> None:
    answers = {"answers": str(preference / "data" / "answers.jsonl")}
    labelled = run_only("feedback", name, tmp_path / "labelled", data=answers)
    found = {(row["meta"]["value"], row["scalars"][scalar]) for row in rows(labelled, "feedback")}
    assert found == {(1.0, right), (0.0, 1 - right)}
    data = {"feedback": {"path": str(labelled / "data" / "feedback.jsonl"), "shape": "sample"}}
    steps = steps_of(run_only("train", name, tmp_path / "run", data=data))
    assert [row["sequences"] for row in steps] == [4, 4]
    assert all(row["grad_norm"] > 0 for row in steps)


def test_a_file_of_labelled_answers_trains_kto(tmp_path: Path) -> None:
    labelled = [{"prompt": f"{n} + 1?", "completion": str(n + n % 2), "label": n % 2 == 1} for n in range(8)]
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    given = ["objective=kto", f"data.train.path={path}", "data.train.columns.label=chosen"]
    run_quietly(read_recipe("finetune", [*given, "data.train.scalars=[chosen]", "steps=1", f"out={tmp_path / 'run'}"]))
    (step,) = (row for row in metrics(tmp_path / "run") if row["kind"] == "train")
    assert step["sequences"] == 32
    assert step["loss"] == pytest.approx(0.5, abs=1e-4)


def test_a_student_starts_away_from_its_teacher_and_comes_nearer(tmp_path: Path) -> None:
    out = run_small("distill", tmp_path / "run", "data.lessons.count=16", "teacher.lr=0.003", "train.steps=4")
    losses = [row["loss"] for row in steps_of(out)]
    assert losses[0] > 1e-3
    assert losses[-1] < losses[0]


def test_a_student_of_answers_trains_on_what_the_teacher_said(tmp_path: Path) -> None:
    out = run_small("seq-distill", tmp_path / "run", "data.lessons.count=16")
    taught = rows(out, "taught")
    assert 8 < len(taught) <= 16
    assert {row["meta"]["stage"] for row in taught} == {"taught"}
    assert manifest(out)["stages"]["train"]["summary"]["samples"] == len(taught)


COMMAND = re.compile(r"^# posttrain run (\S+) (.*)$", re.MULTILINE)


@pytest.mark.parametrize("name", EVERY)
def test_the_command_for_a_hub_model_is_a_valid_one(name: str) -> None:
    ((recipe, overrides),) = COMMAND.findall(shipped_recipes()[name].read_text())
    assert recipe == name
    given = read_recipe(name, shlex.split(overrides))
    assert "/" in given.model.path
    assert _train(given).lr < 1e-3
    assert build_objective(_train(given).objective).terms


def _train(recipe: Recipe) -> Any:
    return recipe.stages["train"]
