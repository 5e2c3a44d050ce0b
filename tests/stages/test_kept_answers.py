"""Stages that ask, killed while they draw: what was drawn is kept, and what comes out is the same."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import die_while_answering, run_quietly, save_tiny, small_recipe, start

from posttrain.errors import UserError
from posttrain.generation import Completion
from posttrain.recipe import Recipe
from posttrain.stages.answers.kept_answers import KeptAnswers, kept_path
from posttrain.stages.context import Context
from posttrain.terminal import Terminal
from posttrain.training.ranks import Ranks

DRAWS = {"n": 3, "temperature": 1.0, "max_new_tokens": 12, "slots": 7}
PLANS = {"k": 3, "max_new_tokens": 5, "end": "</plan>"}
STAGES: dict[str, tuple[dict[str, Any], int]] = {
    # and how many answers are drawn in all
    "evaluate": ({"kind": "evaluate", "reference": "base", **DRAWS}, 30),
    "plans": ({"kind": "evaluate", "max_new_tokens": 4, "plans": PLANS}, 60),
    "generate": ({"kind": "generate", "data": "test", "keep": "all", "stop": list("aeiou123"), **DRAWS}, 30),
    "curate": (
        {"kind": "curate", "data": "test", "models": ["base"], "steps": [{"name": "right_share", "n": 3}]},
        30,
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Completion]:
    """What is drawn in this process, as it comes."""
    found: list[Completion] = []
    add = KeptAnswers.add

    def counted(kept: KeptAnswers, name: str, completion: Completion) -> None:
        found.append(completion)
        add(kept, name, completion)

    monkeypatch.setattr(KeptAnswers, "add", counted)
    return found


def killed(recipe: Recipe, at: int) -> None:
    process = start(die_while_answering, recipe.model_dump(mode="json"), at)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def left(folder: Path) -> dict[str, Any]:
    """All files of answers, data and results, without what the clock says. Of the sums of log-probs the last digits
    hang on how many others are drawn beside an answer."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*/*.json*")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.pop("seconds", None)
            if "logprob" in row:
                row["logprob"] = pytest.approx(row["logprob"], rel=1e-5)
        found[f"{path.parent.name}/{path.name}"] = rows
    return found


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_killed_while_it_draws_asks_only_what_is_missing_and_ends_the_same(
    kind: str, tiny: Path, tmp_path: Path, drawn: list[Completion]
) -> None:
    stage, count = STAGES[kind]
    run_quietly(small_recipe(tiny, tmp_path / "whole", {"asked": stage}))
    assert len(drawn) == count
    drawn.clear()
    cut = small_recipe(tiny, tmp_path / "cut", {"asked": stage})
    killed(cut, 8)
    killed(cut, count - 18)
    run_quietly(cut)
    assert len(drawn) == count - 7 - (count - 19)
    assert left(tmp_path / "cut") == left(tmp_path / "whole")
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_two_functions_of_a_stage_that_ask_the_same_draw_once(
    tiny: Path, tmp_path: Path, drawn: list[Completion]
) -> None:
    stage, count = STAGES["curate"]
    run_quietly(small_recipe(tiny, tmp_path / "run", {"asked": {**stage, "steps": stage["steps"] * 2}}))
    assert len(drawn) == count


def test_dialogues_go_on_with_the_turns_that_are_kept(
    tiny: Path, tmp_path: Path, drawn: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "environment", lambda *_: "unknown")
    stage = {"kind": "evaluate", "data": "talks", "turns": 3, "temperature": 1.0, "max_new_tokens": 60}
    stage["stop"] = list("abcdefghijklmnopqrstuvwxyz")
    talks = {"task": {"name": "assistant", "turns": "dialogues"}, "count": 6, "seed": 1}

    def recipe(name: str) -> Recipe:
        found = small_recipe(tiny, tmp_path / name, {})
        return Recipe.model_validate({**found.model_dump(), "data": {"talks": talks}, "stages": {"asked": stage}})

    run_quietly(recipe("whole"))
    count = len(drawn)
    assert count > 6 + 3, "some dialogues have a second turn"
    drawn.clear()
    add = KeptAnswers.add

    def cut(kept: KeptAnswers, name: str, completion: Completion) -> None:
        add(kept, name, completion)
        if len(drawn) == 8:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(KeptAnswers, "add", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run_quietly(recipe("cut"))
    run_quietly(recipe("cut"))
    assert len(drawn) == count
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_a_stage_that_failed_behind_its_last_answer_asks_nobody_again(
    tiny: Path, tmp_path: Path, drawn: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where it is another stage by now, with a verifier that was mended."""
    stage = {"kind": "evaluate", **DRAWS}
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.stages.context.Context.verify", lambda *_: 1 / 0)
        with pytest.raises(UserError, match="could not be scored"):
            run_quietly(small_recipe(tiny, tmp_path / "run", {"asked": stage}))
    assert len(drawn) == 30
    run_quietly(small_recipe(tiny, tmp_path / "run", {"asked": {**stage, "passes": {"correct": 1.0}}}))
    assert len(drawn) == 30


def test_another_seed_or_temperature_is_another_answer(
    tiny: Path, tmp_path: Path, drawn: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"kind": "evaluate", **DRAWS}
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.stages.evaluate.summarise", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_quietly(small_recipe(tiny, tmp_path / "run", {"asked": stage}))
    run_quietly(small_recipe(tiny, tmp_path / "run", {"asked": {**stage, "temperature": 0.9}}))
    assert len(drawn) == 60


def test_seconds_go_on_where_a_killed_evaluation_was(tiny: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny, tmp_path / "run", {"asked": {"kind": "evaluate", **DRAWS}})
    killed(recipe, 20)
    path = kept_path(tmp_path / "run", "asked")
    rows = [json.loads(line) for line in path.read_bytes().splitlines()[:-1]]
    rows[3]["seconds"] += 1000
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_quietly(recipe)
    assert json.loads((tmp_path / "run" / "results" / "asked.json").read_text())["seconds"] > 1000


@pytest.mark.parametrize("spoiled", [b"spoiled", b"[]", b"{}", b'{"prompt": "p", "sample": 0, "tokens": "?"}', b"\xff"])
def test_a_line_that_is_no_kept_answer_is_named(tiny: Path, tmp_path: Path, spoiled: bytes) -> None:
    context = Context(small_recipe(tiny, tmp_path, {}), Ranks(), Terminal(quiet=True))
    kept = KeptAnswers(context, "asked")
    logprobs = np.zeros(2, np.float32)
    for number in range(2):
        kept.add("asked", Completion(0, number, np.zeros(2, np.int32), logprobs, logprobs, "stop", "yes"))
    path = kept_path(tmp_path, "asked")
    first, second = path.read_bytes().splitlines()
    assert KeptAnswers(context, "asked").find("asked", 1) is not None
    path.write_bytes(b"\n".join([first, spoiled, second, b""]))
    with pytest.raises(UserError, match=rf"line 2 of '{path}' is no answer as they are kept .* take the line out"):
        KeptAnswers(context, "asked")
