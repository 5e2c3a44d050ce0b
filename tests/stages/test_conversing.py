"""Evaluate stages that talk with a task's environment."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
from architectures import IM_END, tokenizer

from posttrain.errors import UserError
from posttrain.generation import Completion
from posttrain.generation.local import LocalEngine
from posttrain.recipe import check_recipe
from posttrain.run import plan
from posttrain.stages.answers.conversing import behind
from posttrain.tasks.assistant import Assistant
from posttrain.terminal import Terminal

EVALUATE = {"kind": "evaluate", "data": "talks", "max_new_tokens": 90}
SAMPLES = Assistant(turns="dialogues").samples(5, 1)


def recipe_of(folder: Path, task: str | dict[str, Any], **fields: Any) -> Any:
    data = {"talks": {"task": task, "count": 5, "seed": 1}}
    model = running.save_tiny(folder / "model")
    stages = {"test": {**EVALUATE, **fields}}
    return check_recipe({"name": "t", "out": str(folder / "run"), "model": str(model), "data": data, "stages": stages})


DIALOGUES = {"name": "assistant", "turns": "dialogues"}


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What an engine that answers every turn rightly, after a thought, was given to read at each call."""
    calls: list[list[str]] = []

    def generate(self: Any, prompts: Any, n: int, sampling: Any) -> list[Completion]:
        calls.append([tokenizer().decode(prompt.tokens) for prompt in prompts])
        found = []
        for index, sample in enumerate(SAMPLES):
            said = f"<think>so</think>{sample.response[2 * len(calls) - 2]['content']}"
            tokens = np.array([*said.encode(), IM_END], dtype=np.int32)
            zeros = np.zeros(len(tokens), np.float32)
            found.append(Completion(index, 0, tokens, zeros, zeros, "stop", said))
        return found

    monkeypatch.setattr(LocalEngine, "generate", generate)
    return calls


def test_a_dialogue_is_scored_by_its_last_turn(tmp_path: Path, contexts: list[list[str]]) -> None:
    running.run_quietly(recipe_of(tmp_path, DIALOGUES, turns=3))
    result = json.loads((tmp_path / "run" / "results" / "test.json").read_text())
    assert result["metrics"]["accuracy"] == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "test.jsonl").read_text().splitlines()]
    for row, sample in zip(rows, SAMPLES, strict=True):
        first, reply, last = sample.response
        shown = [f"<think>so</think>{first['content']}", f"[{reply['role']}] {reply['content']}"]
        assert row["text"].split("\n") == [*shown, f"<think>so</think>{last['content']}"]
        assert row["tokens"] == sum(len(f"<think>so</think>{turn['content']}") + 1 for turn in (first, last))
    assert len(contexts) == 2
    assert all("<think>so" in text for text in contexts[1])


def test_earlier_thoughts_can_be_dropped(tmp_path: Path, contexts: list[list[str]]) -> None:
    running.run_quietly(recipe_of(tmp_path, DIALOGUES, turns=3, drop_thinking=True))
    for text, sample in zip(contexts[1], SAMPLES, strict=True):
        assert "<think>" not in text
        assert f"assistant\n{sample.response[0]['content']}<|im_end|>" in text


def test_one_turn_of_a_dialogue_is_not_its_end(tmp_path: Path, contexts: list[list[str]]) -> None:
    running.run_quietly(recipe_of(tmp_path, DIALOGUES))
    assert json.loads((tmp_path / "run" / "results" / "test.json").read_text())["metrics"]["accuracy"] == 0


def test_a_task_without_environment_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 'chains' has none: set turns to 1"):
        plan(recipe_of(tmp_path, "chains", turns=2), Terminal(quiet=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"turns": 2, "template": "none"}, "needs a chat template"),
        ({"turns": 2, "reference": "base"}, "'reference' is measured along single turns"),
        ({"drop_thinking": True}, "'drop_thinking' has no effect with turns: 1"),
    ],
)
def test_what_dialogues_cannot_do_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_of(tmp_path, DIALOGUES, **fields)


def test_what_follows_a_thought_is_behind_its_last_end() -> None:
    assert behind([1, 2, 3, 9, 2, 3, 4], [2, 3]) == [4]
    assert behind([1, 2], [3]) == [1, 2]
    assert behind([3], [3]) == []
