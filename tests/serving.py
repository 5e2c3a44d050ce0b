"""A server that speaks vLLM's dialect as far as it is used here, over the in-process engine: `serving(folder)`.

Real tokens and log-probs of a real model, real LoRA adapters and safetensors folders read from disk at run time; and
switches for what goes wrong with servers.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from json_server import JsonHandler, Reply, start_server
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.generation import Completion, Prompt, Sampling
from posttrain.generation.local import LocalEngine

CONTROL = ("/pause", "/resume", "/collective_rpc", "/reset_prefix_cache")
ADAPTERS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


@dataclass
class Faults:
    """What may go wrong. `drops`, `busy`, `aborted`: so many completion requests are dropped, refused, cut short."""

    slow: float = 0.0
    drops: int = 0
    busy: int = 0
    aborted: int = 0
    most: int | None = None
    """Samples that one request brings at most."""
    token_ids: bool = True
    logprobs: bool = True
    deaf: bool = False
    """Says that it took new weights, and did not."""
    control_drops: int = 0
    without: tuple[str, ...] = ()
    """Endpoints that it lacks."""


@dataclass
class Serving:
    """The state of a running server. `processed`: started with `--logprobs-mode processed_logprobs`."""

    base: Path
    name: str = "policy"
    processed: bool = False
    url: str = ""
    faults: Faults = field(default_factory=Faults)
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.base)
        self.model = self._read(self.base)
        self.adapters: dict[str, Any] = {}
        self.waiting: Any = None
        self.paused = False
        self.lock = threading.Lock()

    def completions(self, body: dict[str, Any]) -> Reply | None:
        time.sleep(self.faults.slow)
        if self.faults.drops > 0:
            self.faults.drops -= 1
            return None
        if self.paused or self.faults.busy > 0:
            self.faults.busy -= 1
            return 503, {"error": "busy"}
        model = self.model if body["model"] == self.name else self.adapters.get(body["model"])
        if model is None:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        with self.lock:
            choices = [
                self._choice(model, body, index) for index in range(min(body["n"], self.faults.most or body["n"]))
            ]
        if self.faults.aborted > 0:
            self.faults.aborted -= 1
            choices[-1]["finish_reason"] = "abort"
        return 200, {"model": body["model"], "choices": choices, "usage": {"prompt_tokens": len(body["prompt"])}}

    def _choice(self, model: Any, body: dict[str, Any], index: int) -> dict[str, Any]:
        """Sample `index` of a request: seeded with the request's seed plus its index, as vLLM does."""
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_k=max(0, body["top_k"]),
            top_p=body["top_p"],
            min_p=body["min_p"],
            stop=tuple(body.get("stop", ())),
            stop_tokens=tuple(body["stop_token_ids"]),
            seed=body["seed"] + index,
        )
        answer: Completion = LocalEngine(model, self.tokenizer).generate([prompt_of(body["prompt"])], 1, sampling)[0]
        logprobs = answer.sampling_logprobs if self.processed else answer.logprobs
        choice: dict[str, Any] = {"index": index, "text": answer.text, "finish_reason": answer.finish_reason}
        if self.faults.token_ids:
            choice["token_ids"] = answer.tokens.tolist()
        if self.faults.logprobs:
            choice["logprobs"] = {"tokens": ["?"] * len(answer.tokens), "token_logprobs": logprobs.tolist()}
        return choice

    def load_lora_adapter(self, body: dict[str, Any]) -> Reply:
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        if not (path / "adapter_config.json").exists():
            return 404, {"error": {"message": f"Loading lora {name} failed: No adapter found for {path}"}}
        with self.lock:
            self.adapters[name] = self._read(self.base) if self.faults.deaf else self._adapted(path)
        return 200, {}

    def unload_lora_adapter(self, body: dict[str, Any]) -> Reply:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, {"error": {"message": f"The lora adapter '{body['lora_name']}' cannot be found."}}
        return 200, {}

    def collective_rpc(self, body: dict[str, Any]) -> Reply:
        """New weights answer when the prefix cache is reset: until then a real one answers with what it has read."""
        assert (body["method"], self.paused) == ("reload_weights", True), "reloaded under running requests"
        path = Path(body["kwargs"]["weights_path"])
        if not (path / "config.json").exists():
            return 500, {"error": f"no such model: {path}"}
        self.waiting = self.model if self.faults.deaf else self._read(path)
        return 200, {"results": [None]}

    def reset_prefix_cache(self, body: dict[str, Any]) -> Reply:
        self.model, self.waiting = self.waiting or self.model, None
        return 200, {}

    def pause(self, body: dict[str, Any]) -> Reply:
        self.paused = True
        return 200, {"status": "paused"}

    def resume(self, body: dict[str, Any]) -> Reply:
        self.paused = False
        return 200, {"status": "resumed"}

    def answer(self, path: str, body: dict[str, Any]) -> Reply | None:
        """The reply to a POST; None drops the connection."""
        path = path.partition("?")[0]
        if path not in ("/v1/completions", *CONTROL, *ADAPTERS) or path in self.faults.without:
            return 404, {"detail": "Not Found"}
        if path != "/v1/completions" and self.faults.control_drops > 0:
            self.faults.control_drops -= 1
            return None
        reply: Reply | None = getattr(self, path.rpartition("/")[2])(body)
        return reply

    def look(self, path: str) -> Reply:
        """The reply to a GET."""
        if path == "/openapi.json":
            known = {"/v1/completions", *CONTROL, *ADAPTERS}.difference(self.faults.without)
            return 200, {"paths": {endpoint: {} for endpoint in known}}
        if path == "/v1/models":
            return 200, {"data": [{"id": self.name, "max_model_len": self.model.config.max_position_embeddings}]}
        if path == "/is_paused":
            return 200, {"is_paused": self.paused}
        return 404, {"detail": "Not Found"}

    def _read(self, path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path).eval()

    def _adapted(self, path: Path) -> Any:
        return PeftModel.from_pretrained(self._read(self.base), str(path)).eval()


def prompt_of(tokens: list[int]) -> Prompt:
    """A prompt whose random stream hangs on the seed alone, as on a server that knows nothing of other prompts."""
    return Prompt(np.array(tokens, np.int32), key=0)


@contextmanager
def serving(base: Path, **options: Any) -> Iterator[Serving]:
    """A running server of the model in `base`, on the loopback interface."""
    state = Serving(base, **options)

    class Handler(JsonHandler):
        protocol_version = "HTTP/1.1"

        def post(self, body: dict[str, Any]) -> Reply | None:
            state.seen.append((self.path, body))
            return state.answer(self.path, body)

        def get(self) -> Reply:
            return state.look(self.path)

    server = start_server(Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
