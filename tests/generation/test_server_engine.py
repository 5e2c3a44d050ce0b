"""The server engine: `transformers serve` on the loopback interface, and scripted servers with faults."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from architectures import IM_END, build, tokenizer
from json_server import Reply
from scripted_server import choice, like_vllm

from posttrain.errors import UserError
from posttrain.generation import Prompt, Sampling
from posttrain.generation.local import LocalEngine
from posttrain.generation.server import ServerEngine

TOKENIZER = tokenizer()


def prompt(text: str) -> Prompt:
    return Prompt(np.array(TOKENIZER.encode(text), dtype=np.int32))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and name of a small model behind `transformers serve`."""
    for module in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"transformers serve needs {module}, which is not installed")
    folder = tmp_path_factory.mktemp("served")
    build("qwen2").save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).parent / "transformers"
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [command, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.HTTPError:
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, (folder / "log").read_text()[-3000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def test_greedy_answers_of_transformers_serve_equal_those_of_the_local_engine(served: tuple[str, str]) -> None:
    engine = ServerEngine(*served, TOKENIZER)
    asked = [prompt("<|im_start|>user\nOne and two?<|im_end|>\n"), prompt("abc")]
    sampling = Sampling(max_new_tokens=12, temperature=0)
    found = engine.generate(asked, 1, sampling)
    expected = LocalEngine(build("qwen2"), TOKENIZER).generate(asked, 1, sampling)
    assert (engine.dialect, engine.exact) == ("transformers", False)
    for there, here in zip(found, expected, strict=True):
        assert there.text == TOKENIZER.decode(here.tokens, skip_special_tokens=True)
        assert (there.prompt, there.sample, there.finish_reason) == (here.prompt, here.sample, here.finish_reason)
        assert np.isnan(there.logprobs).all()


def test_samples_of_transformers_serve_differ_and_follow_the_seed(served: tuple[str, str]) -> None:
    engine = ServerEngine(*served, TOKENIZER)
    asked = [prompt("abc"), prompt("defg")]
    sampling = Sampling(max_new_tokens=10, temperature=1.0, stop_tokens=(65,), stop=("zz",), seed=3)
    first = engine.generate(asked, 3, sampling)
    assert [(answer.prompt, answer.sample) for answer in first] == [(p, s) for p in range(2) for s in range(3)]
    assert len({answer.text for answer in first}) == 6
    assert [answer.text for answer in engine.generate(asked, 3, sampling)] == [answer.text for answer in first]


def test_a_conversation_is_rendered_by_the_server(served: tuple[str, str]) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0)
    found = ServerEngine(*served, TOKENIZER).chat([[{"role": "user", "content": "hi"}]], 1, sampling)[0]
    rendered = prompt("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    expected = LocalEngine(build("qwen2"), TOKENIZER).generate([rendered], 1, sampling)[0]
    assert found.text == TOKENIZER.decode(expected.tokens, skip_special_tokens=True)


def test_a_server_of_another_model_is_named(served: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="pinned to"):
        ServerEngine(served[0], "another-model", TOKENIZER).generate([prompt("a")], 1, Sampling())


def test_token_ids_and_logprobs_of_vllm_are_kept(scripted: Any) -> None:
    address, seen = scripted(like_vllm)
    drawn: list[int] = []
    engine = ServerEngine(address, "m", TOKENIZER, progress=drawn.append)
    found = engine.generate([prompt("a"), prompt("bc")], 2, Sampling(top_k=5, stop=("x",), stop_tokens=(1,), seed=4))
    assert [answer.text for answer in found] == ["97/0", "97/1", "98/0", "98/1"]
    assert engine.exact
    assert sum(drawn) == 4 * 5
    for answer in found:
        assert answer.tokens.tolist() == [*answer.text.encode(), IM_END]
        assert answer.logprobs.tolist() == [-0.5] * 5
        assert np.isnan(answer.sampling_logprobs).all()  # of another distribution than the policy's: not known
    asked = next(body for body in seen if body["prompt"] == [98, 99])
    assert (asked["top_k"], asked["stop"], asked["stop_token_ids"], asked["n"]) == (5, ["x"], [1], 2)
    untouched = engine.generate([prompt("a")], 1, Sampling())[0]
    assert untouched.sampling_logprobs.tolist() == [-0.5] * 5


def test_a_dropped_connection_and_a_busy_server_are_tried_again(scripted: Any) -> None:
    faults: list[Reply | None] = [None, (503, {"error": "busy"}), (429, {"error": "slow down"})]
    address, _ = scripted(lambda body: faults.pop() if faults else like_vllm(body))
    found = ServerEngine(address, "m", TOKENIZER, first_wait=0.01).generate([prompt("a")], 2, Sampling())
    assert [answer.text for answer in found] == ["97/0", "97/1"]
    assert not faults


def test_missing_samples_are_asked_for_again(scripted: Any) -> None:
    def one_at_a_time(body: dict[str, Any]) -> Reply:
        return 200, {"choices": [choice(str(body["seed"]))]}

    address, _ = scripted(one_at_a_time)
    found = ServerEngine(address, "m", TOKENIZER).generate([prompt("a")], 4, Sampling())
    assert [answer.sample for answer in found] == [0, 1, 2, 3]
    assert len({answer.text for answer in found}) == 4


def test_only_the_named_samples_of_a_prompt_are_drawn_each_with_its_own_seed(scripted: Any) -> None:
    def seeds(body: dict[str, Any]) -> Reply:
        return 200, {"choices": [choice(str(body["seed"] + i)) for i in range(body["n"])]}

    address, seen = scripted(seeds)
    engine = ServerEngine(address, "m", TOKENIZER, dialect="vllm")
    whole = engine.generate([prompt("a")], 6, Sampling())
    some = engine.generate([replace(prompt("a"), key=0, samples=(1, 2, 5))], 6, Sampling())
    assert [(one.sample, one.text) for one in some] == [(i, whole[i].text) for i in (1, 2, 5)]
    assert [body["n"] for body in seen] == [6, 2, 1]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {"choices": []}), "no answer to prompt 0"),
        ((200, {"model": "other", "choices": [choice("a")]}), "answered as model 'other', not 'm'"),
        ((404, {"error": "The model m does not exist"}), "does not exist"),
        ((401, {"error": "no key"}), "no key"),
        ((500, {"error": "broken"}), "status 500.*broken"),
    ],
)
def test_what_a_server_cannot_do_is_said_in_one_message(scripted: Any, reply: Reply, message: str) -> None:
    address, _ = scripted(lambda body: reply)
    with pytest.raises(UserError, match=message):
        ServerEngine(address, "m", TOKENIZER, retries=1, first_wait=0.01).generate([prompt("a")], 1, Sampling())


def test_a_slow_server_and_an_absent_one_are_given_up_on(scripted: Any) -> None:
    def slow(body: dict[str, Any]) -> Reply:
        time.sleep(0.5)
        return like_vllm(body)

    address, _ = scripted(slow)
    for where, why in [(address, "ReadTimeout"), ("http://127.0.0.1:1/v1", "ConnectError")]:
        engine = ServerEngine(where, "m", TOKENIZER, timeout=0.1, retries=1, first_wait=0.01)
        with pytest.raises(UserError, match=f"in 2 tries \\({why}"):
            engine.generate([prompt("a")], 1, Sampling())


def test_a_plain_server_gets_text_and_rules_it_lacks_are_refused(scripted: Any) -> None:
    def plain(body: dict[str, Any]) -> Reply:
        if "top_k" in body:
            return 400, {"error": "Unrecognized request argument supplied: top_k"}
        return 200, {"choices": [{"text": "yes", "finish_reason": "stop"}] * body["n"]}

    address, seen = scripted(plain)
    engine = ServerEngine(address, "m", TOKENIZER)
    answer = engine.generate([prompt("abc")], 2, Sampling())[1]
    assert seen[-1]["prompt"] == "abc"
    assert (answer.text, answer.tokens.tolist()) == ("yes", [*b"yes", IM_END])
    assert np.isnan(answer.logprobs).all()
    assert engine.exact is False
    with pytest.raises(UserError, match="top_k"):
        engine.generate([prompt("abc")], 1, Sampling(top_k=3))


def test_a_server_that_reads_the_prompt_as_other_tokens_is_warned_of(scripted: Any) -> None:
    reply = 200, {"choices": [{"text": "yes", "finish_reason": "stop"}], "usage": {"prompt_tokens": 2}}
    address, _ = scripted(lambda body: reply)
    with pytest.warns(UserWarning, match="as 2 tokens, but it has 3"):
        ServerEngine(address, "m", TOKENIZER, dialect="openai").generate([prompt("abc")], 1, Sampling())


def test_no_prompts_reach_no_server() -> None:
    assert ServerEngine("http://127.0.0.1:1/v1", "m", TOKENIZER).generate([], 2, Sampling()) == []
