"""What stages share: which data are there, what an output depends on, how answers are compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import running

from posttrain.errors import UserError
from posttrain.recipe import check_recipe
from posttrain.run import plan
from posttrain.stages import Context
from posttrain.terminal import Terminal
from posttrain.training.ranks import Ranks

GENERATE = {"kind": "generate", "data": "ask", "max_new_tokens": 4}
CHAINS = {"task": "chains", "count": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save_tiny(tmp_path_factory.mktemp("model"))


def context_of(folder: Path, model: object = "tiny", **content: Any) -> Context:
    recipe = {"name": "t", "out": str(folder / "run"), "model": str(model), "stages": {}, **content}
    return Context(check_recipe(recipe), Ranks(), Terminal(quiet=True))


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def question(text: str, answer: str) -> dict[str, Any]:
    return {"question": text, "answer": answer}


# --- data of stages that have not run ---


def test_stages_inside_a_mix_are_pending(tmp_path: Path) -> None:
    mix = {"mix": [CHAINS, {"mix": [{"stage": "gen"}], "repeat": 2}]}
    context = context_of(tmp_path, data={"ask": CHAINS, "mixed": mix}, stages={"gen": GENERATE})
    assert context.pending(context.data("mixed")) == {"gen"}
    assert context.pending(context.data("gen")) == {"gen"}
    assert context.pending(context.data("ask")) == set()


def test_a_mix_with_the_data_of_a_later_stage_is_refused(tmp_path: Path) -> None:
    data = {"ask": CHAINS, "mixed": {"mix": [CHAINS, {"stage": "gen"}]}}
    test = {"kind": "evaluate", "data": "mixed", "max_new_tokens": 4}
    context = context_of(tmp_path, data=data, stages={"test": test, "gen": GENERATE})
    with pytest.raises(UserError, match=r"stage 'test' reads 'gen', which runs only after it"):
        plan(context.recipe, context.terminal)


def test_data_of_a_stage_that_writes_none_are_refused(tmp_path: Path) -> None:
    stages = {"gen": GENERATE, "clean": {"kind": "curate", "data": "mixed", "steps": ["deduplicate"]}}
    context = context_of(tmp_path, data={"ask": CHAINS, "mixed": {"mix": [{"stage": "gne"}]}}, stages=stages)
    with pytest.raises(UserError, match=r"'stage: gne' is written by no generate or curate stage.*gen"):
        plan(context.recipe, context.terminal)


def test_questions_in_a_mix_may_be_written_by_an_earlier_stage(tmp_path: Path, model: Path) -> None:
    data = {"ask": CHAINS, "mixed": {"mix": [CHAINS, {"stage": "gen"}]}}
    test = {"kind": "evaluate", "data": "mixed", "max_new_tokens": 4}
    context = context_of(tmp_path, model, data=data, stages={"gen": GENERATE, "test": test})
    assert plan(context.recipe, context.terminal)["test"].numbers == {"answers_each": 1}


def test_the_plan_of_a_curation_reads_its_data(tmp_path: Path) -> None:
    stages = {"clean": {"kind": "curate", "data": "own", "steps": ["deduplicate"]}}
    path = write(tmp_path / "own.jsonl", question("1+1?", "2"), question("1+2?", "3"))
    context = context_of(tmp_path, data={"own": path}, stages=stages)
    assert plan(context.recipe, context.terminal)["clean"].numbers["samples"] == 2
    (tmp_path / "own.jsonl").unlink()
    with pytest.raises(UserError, match=r"stage 'clean': no such file or folder: .*own\.jsonl"):
        plan(context.recipe, context.terminal)
