"""HTTP servers on the loopback interface that answer completion requests with what a function makes of them."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from architectures import IM_END

Reply = tuple[int, dict[str, Any]]


def start(answer: Callable[[dict[str, Any]], Reply | None]) -> tuple[ThreadingHTTPServer, list[dict[str, Any]]]:
    """A running server (the caller ends it), and the requests that it has seen. None drops the connection."""
    seen: list[dict[str, Any]] = []

    class Script(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
            reply = answer(body)
            if reply is None:
                self.close_connection = True
                self.connection.close()
                return
            content = json.dumps(reply[1]).encode()
            self.send_response(reply[0])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, seen


def choice(text: str) -> dict[str, Any]:
    """One answer as vLLM gives it."""
    tokens = [*text.encode(), IM_END]
    logprobs = {"tokens": ["?"] * len(tokens), "token_logprobs": [-0.5] * len(tokens)}
    return {"text": text, "token_ids": tokens, "logprobs": logprobs, "finish_reason": "stop"}


def like_vllm(body: dict[str, Any]) -> Reply:
    """Answers that name the prompt's first token and the draw."""
    return 200, {"model": body["model"], "choices": [choice(f"{body['prompt'][0]}/{i}") for i in range(body["n"])]}
