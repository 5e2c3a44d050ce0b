"""The weights of a policy in training into a running vLLM server: over HTTP, through a folder that both sides see.

What vLLM has read of a prompt (its prefix cache) outlives new weights: it is kept by the adapter's name, and since 0.32
its path (vllm-project/vllm issue 42125), and `reload_weights` does not touch it. So an adapter gets a new name and path
each time, which also spares the reads in every step that `load_inplace` causes (pull request 36373), and a reload is
followed by `/reset_prefix_cache`. Tried with vLLM 0.32 on a CPU. Left out: `/update_weights` and its kin, which move
tensors over NCCL or CUDA IPC (https://docs.vllm.ai/en/latest/training/weight_transfer/).
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx

from posttrain.errors import UserError

Save = Callable[[Path], None]
"""Writes the policy as a `save_pretrained` folder, whole or not at all; one that is there is replaced."""


class Synchroniser(Protocol):
    """A way for new weights into a server."""

    def check(self) -> None:
        """Raises `UserError` when the server is known to lack what `push` asks of it. Changes nothing."""
        ...

    def push(self, save: Save, version: int) -> str:
        """Bring the policy's weights to the server; the model name that it serves them under from now on.

        No answer may be on its way. Raises `UserError` when the server does not take them.
        """
        ...


class Control:
    """A vLLM server's control endpoints, which begin beside its `/v1`.

    A dropped connection or a time-out (`timeout` seconds) is tried again `retries` times; a refusal is not.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 3,
        first_wait: float = 0.5,
    ) -> None:
        self.root = base_url.rstrip("/").removesuffix("/v1")
        self.retries, self.first_wait = retries, first_wait
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=10.0))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """The server's answer, whatever its status. Raises `UserError` when there is none."""
        wait = self.first_wait
        for attempt in range(self.retries + 1):
            try:
                return self._client.post(self.root + path, json=None if body is None else dict(body))
            except httpx.TransportError as error:
                fault = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(wait)
                wait *= 2
        raise UserError(f"no answer from {self.root}{path} in {self.retries + 1} tries ({fault})")

    def get(self, path: str) -> dict[str, Any]:
        """What the server tells, nothing where it does not."""
        try:
            answer = self._client.get(self.root + path)
            told = answer.json() if answer.is_success else {}
        except (httpx.TransportError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}


class AdapterSync:
    """LoRA adapters, loaded at run time (https://docs.vllm.ai/en/latest/features/lora/, "Using API Endpoints").

    Each push saves the adapter in `folder`, loads it under a name of its version and content, and unloads the one
    before. `seen_as`: where the server finds `folder`, if it sees it elsewhere.
    """

    START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve <base> --enable-lora --max-lora-rank <rank>"
    LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"

    def __init__(self, control: Control, folder: Path, seen_as: str | None = None) -> None:
        self.control, self.folder, self.seen_as = control, folder, seen_as
        self._served: tuple[str, Path] | None = None

    def check(self) -> None:
        """See `Synchroniser.check`."""
        _check_paths(self.control, (self.LOAD, self.UNLOAD), self.START)

    def push(self, save: Save, version: int) -> str:
        """See `Synchroniser.push`. A saved folder without an adapter is refused."""
        target = _saved(save, self.folder, version)
        weights = target / "adapter_model.safetensors"
        if not weights.exists():
            raise UserError(
                "sync 'adapter' brings adapters to the server, but the policy was saved as a whole model: it has no "
                "adapter, or one on a base that is in no folder of its own; choose sync 'folder'"
            )
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
        name = f"posttrain-{version}-{digest}"
        if self._served is None or self._served[0] != name:
            self._load(name, {"lora_name": name, "lora_path": _place(target, self.folder, self.seen_as)})
            if self._served is not None:
                # Refused where the server was started anew in between: then there is nothing to unload.
                self.control.post(self.UNLOAD, {"lora_name": self._served[0]})
                shutil.rmtree(self._served[1], ignore_errors=True)
            self._served = (name, target)
        return name

    def _load(self, name: str, body: dict[str, str]) -> None:
        answer = self.control.post(self.LOAD, body)
        if answer.status_code == 400 and "already" in answer.text:  # by an earlier run, or a try whose answer was lost
            self.control.post(self.UNLOAD, {"lora_name": name})
            answer = self.control.post(self.LOAD, body)
        _expect_success(self.control, self.LOAD, answer, self.START)


class FolderSync:
    """Whole weights, read by the server again: `reload_weights` with a `weights_path`, over `/collective_rpc`
    (https://docs.vllm.ai/en/latest/features/sleep_mode/ has the endpoint, `GPUModelRunner.reload_weights` of vLLM the
    argument), between `/pause` and `/resume` (https://docs.vllm.ai/en/latest/training/weight_transfer/).

    Each push saves the model in `folder`; the one before is deleted. `seen_as`: where the server finds `folder`, if it
    sees it elsewhere. `model`: the name that the server serves.
    """

    START = "VLLM_SERVER_DEV_MODE=1 vllm serve <model> --served-model-name <name>"
    PAUSE, RELOAD, RESET, RESUME = "/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"

    def __init__(self, control: Control, folder: Path, model: str, seen_as: str | None = None) -> None:
        self.control, self.folder, self.model, self.seen_as = control, folder, model, seen_as
        self._served: Path | None = None

    def check(self) -> None:
        """See `Synchroniser.check`."""
        _check_paths(self.control, (self.PAUSE, self.RELOAD, self.RESET, self.RESUME), self.START)
        if self.control.get("/is_paused").get("is_paused"):
            raise UserError(
                f"the server at {self.control.root} is paused and answers nobody, perhaps since a run could not send "
                f"it weights: restart it, or, where it has whole ones, curl -X POST {self.control.root}{self.RESUME}"
            )

    def push(self, save: Save, version: int) -> str:
        """See `Synchroniser.push`. A server that does not take the weights stays paused: vLLM has then dropped its own,
        and would end at the next request."""
        target = _saved(save, self.folder, version)
        if (target / "adapter_config.json").exists():
            raise UserError("sync 'folder' brings whole models to the server, but this policy is an adapter: 'adapter'")
        kwargs = {"weights_path": _place(target, self.folder, self.seen_as)}
        _done(self.control, f"{self.PAUSE}?mode=wait", None, self.START)
        _done(self.control, self.RELOAD, {"method": "reload_weights", "kwargs": kwargs}, self.START)
        _done(self.control, self.RESET, None, self.START)
        _done(self.control, self.RESUME, None, self.START)
        if self._served is not None and self._served != target:
            shutil.rmtree(self._served, ignore_errors=True)
        self._served = target
        return self.model


def _saved(save: Save, folder: Path, version: int) -> Path:
    target = folder / f"version-{version}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write weights for the server to '{folder}': {error}") from error
    save(target)
    return target


def _place(target: Path, folder: Path, seen_as: str | None) -> str:
    """Where the server finds `target`, which lies in `folder`."""
    return str(folder.resolve() / target.name) if seen_as is None else f"{seen_as.rstrip('/')}/{target.name}"


def _done(control: Control, path: str, body: Mapping[str, Any] | None, start: str) -> None:
    _expect_success(control, path, control.post(path, body), start)


def _expect_success(control: Control, path: str, answer: httpx.Response, start: str) -> None:
    if answer.status_code in (404, 405) and "adapter" not in answer.text:
        raise UserError(f"the server has no endpoint {control.root}{path}: start it with {start}")
    if not answer.is_success:
        raise UserError(
            f"the server did not take the new weights: {control.root}{path} answered with status "
            f"{answer.status_code}: {answer.text[:500]}"
        )


def _check_paths(control: Control, needed: tuple[str, ...], start: str) -> None:
    known = control.get("/openapi.json").get("paths")
    missing = [path for path in needed if path not in known] if known else []
    if missing:
        raise UserError(f"the server at {control.root} has no endpoint {', '.join(missing)}: start it with {start}")
