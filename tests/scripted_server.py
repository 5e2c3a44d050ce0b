"""HTTP servers on the loopback interface that answer completion requests with what a function makes of them."""

from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any

from architectures import IM_END
from json_server import JsonHandler, Reply, start_server


def start(answer: Callable[[dict[str, Any]], Reply | None]) -> tuple[ThreadingHTTPServer, list[dict[str, Any]]]:
    """A running server (the caller ends it), and the requests that it has seen. None drops the connection."""
    seen: list[dict[str, Any]] = []

    class Script(JsonHandler):
        def post(self, body: dict[str, Any]) -> Reply | None:
            seen.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
            return answer(body)

    return start_server(Script), seen


def choice(text: str) -> dict[str, Any]:
    """One answer as vLLM gives it."""
    tokens = [*text.encode(), IM_END]
    logprobs = {"tokens": ["?"] * len(tokens), "token_logprobs": [-0.5] * len(tokens)}
    return {"text": text, "token_ids": tokens, "logprobs": logprobs, "finish_reason": "stop"}


def like_vllm(body: dict[str, Any]) -> Reply:
    """Answers that name the prompt's first token and the draw."""
    return 200, {"model": body["model"], "choices": [choice(f"{body['prompt'][0]}/{i}") for i in range(body["n"])]}
