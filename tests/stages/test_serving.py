"""Stages whose answers come from a server."""

import json
from pathlib import Path
from typing import Any

import pytest
import running
from architectures import IM_END
from json_server import Reply
from scripted_server import choice, like_vllm

from posttrain.errors import UserError
from posttrain.recipe import Recipe, check_recipe
from posttrain.run import plan
from posttrain.terminal import Terminal


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save_tiny(tmp_path_factory.mktemp("model"))


def recipe_of(model: Path, folder: Path, server: dict[str, Any], **fields: Any) -> Recipe:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n" for n in range(3)))
    stage = {"kind": "evaluate", "data": "own", "max_new_tokens": 4, "server": {"model": "m", **server}, **fields}
    content = {"name": "t", "out": str(folder / "run"), "model": str(model), "data": {"own": str(path)}}
    return check_recipe({**content, "stages": {"ask": stage}})


def right(body: dict[str, Any]) -> Reply:
    """Says the digit that stands in the question."""
    if body["max_tokens"] == 1:
        return like_vllm(body)
    digit = next(chr(token) for token in body["prompt"] if chr(token).isdigit())
    return 200, {"model": "m", "choices": [choice(f"#### {digit}")] * body["n"]}


def test_a_server_s_answers_are_scored_like_a_model_s(tiny: Path, tmp_path: Path, scripted: Any) -> None:
    address, seen = scripted(right)
    recipe = recipe_of(tiny, tmp_path, {"url": address})
    assert "'m' at" in plan(recipe, Terminal(quiet=True))["ask"].notes[0]
    running.run_quietly(recipe)
    metrics = json.loads((tmp_path / "run" / "results" / "ask.json").read_text())["metrics"]
    assert (metrics["accuracy"], metrics["problems"]) == (1.0, 3)
    assert "perplexity" not in metrics
    assert IM_END in seen[-1]["stop_token_ids"]


def test_a_server_s_answers_become_data(tiny: Path, tmp_path: Path, scripted: Any) -> None:
    address, _ = scripted(right)
    running.run_quietly(recipe_of(tiny, tmp_path, {"url": address}, kind="generate", temperature=1.0))
    rows = [json.loads(line) for line in (tmp_path / "run" / "data" / "ask.jsonl").read_text().splitlines()]
    assert [row["response"][0]["content"] for row in rows] == ["#### 0", "#### 1", "#### 2"]


def test_a_plain_server_is_not_told_stop_tokens(tiny: Path, tmp_path: Path, scripted: Any) -> None:
    def plain(body: dict[str, Any]) -> Reply:
        if "top_k" in body:
            return 400, {"error": "Unrecognized request argument supplied: top_k"}
        return 200, {"choices": [{"text": "#### 1", "finish_reason": "stop"}] * body["n"]}

    address, _ = scripted(plain)
    running.run_quietly(recipe_of(tiny, tmp_path, {"url": address}))
    metrics = json.loads((tmp_path / "run" / "results" / "ask.json").read_text())["metrics"]
    assert metrics["accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"url": "http://127.0.0.1:1/v1"}, "no answer from http://127.0.0.1:1/v1/completions.*is the server running"),
        ({"url": "http://127.0.0.1:1/v1", "dialect": "vllm"}, "is the server running"),
        ({"url": "localhost:8000"}, "is no address"),
        ({"url": "http://127.0.0.1:1/v1", "api_key_variable": "NO_SUCH_KEY"}, "no such environment variable is set"),
    ],
)
def test_a_server_out_of_reach_is_refused_before_anything_is_computed(
    tiny: Path, tmp_path: Path, server: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        plan(recipe_of(tiny, tmp_path, server), Terminal(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_server_s_key_is_sent(tiny: Path, tmp_path: Path, scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address, seen = scripted(right)
    monkeypatch.setenv("OUR_KEY", "secret")
    running.run_quietly(recipe_of(tiny, tmp_path, {"url": address, "api_key_variable": "OUR_KEY"}))
    assert {request["key"] for request in seen} == {"Bearer secret"}


def test_what_a_server_does_not_give_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which no server gives"):
        recipe_of(tiny, tmp_path, {"url": "http://127.0.0.1:1/v1"}, reference="base")
