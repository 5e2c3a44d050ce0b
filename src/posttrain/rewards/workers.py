"""Processes that answer requests one after the other, kept for the next one: what runs or proves what a model wrote.

Requests and replies are eight bytes of length and JSON, on standard input and output.
"""

import atexit
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from pathlib import Path
from typing import Any

from posttrain.errors import UserError


class Worker:
    """A process that answers one request at a time: `script`, run by its path with an empty folder and `arguments`."""

    def __init__(self, script: Path, arguments: List[str] = ()) -> None:
        self.folder = tempfile.mkdtemp(prefix="posttrain-programs-")  # the worker removes it
        # The hash seed: a set is walked through in the same order every time.
        surroundings = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", str(script), self.folder, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=surroundings,
            cwd=self.folder,
            start_new_session=True,  # an interrupt of the terminal is none of its business
            bufsize=0,
        )
        assert self.process.stdout is not None
        self.replies = select.poll()
        self.replies.register(self.process.stdout, select.POLLIN)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and wait for its reply; raises `ConnectionError`."""
        assert self.process.stdin is not None
        body = json.dumps(request).encode()
        sent = memoryview(len(body).to_bytes(8) + body)
        while sent:
            sent = sent[self.process.stdin.write(sent) :]
        size = int.from_bytes(self._read(8, seconds))
        reply: dict[str, Any] = json.loads(self._read(size, seconds))
        return reply

    def _read(self, size: int, seconds: float) -> bytes:
        assert self.process.stdout is not None
        found = b""
        while len(found) < size:
            if not self.replies.poll(seconds * 1000):
                raise ConnectionError(f"no reply within {seconds:g} s")
            chunk = self.process.stdout.read(size - len(found))
            if not chunk:
                raise ConnectionError("it ended")
            found += chunk
        return found

    def close(self) -> None:
        """End it; the programs that it runs end with it, where they cannot leave their process group."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Workers:
    """The workers of one script that wait for a request; a fork of this process needs its own."""

    def __init__(self, script: Path, arguments: Callable[[], List[str]] = list) -> None:
        self.script, self.arguments = script, arguments
        self._begin()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self.owner, self.lock = os.getpid(), threading.Lock()
        self.idle: list[Worker] = []

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The reply of one that is idle, or of a new one; threads may ask side by side.

        Raises `ConnectionError` where it breaks down or needs more than `seconds`, `UserError` where there is no Linux,
        or no process can be started.
        """
        worker = self._take()
        try:
            reply = worker.ask(request, seconds)
        except BaseException:  # also when interrupted: its answer would go to the next one who asks
            worker.close()
            raise
        with self.lock:
            self.idle.append(worker)
        return reply

    def _take(self) -> Worker:
        if sys.platform != "linux":
            raise UserError(f"running programs is limited and isolated on Linux alone, and this is {sys.platform}")
        with self.lock:
            if self.idle:
                return self.idle.pop()
        try:
            return Worker(self.script, self.arguments())
        except OSError as error:
            raise UserError(f"no process can be started to run programs in: {error}") from None

    def close(self) -> None:
        """End all that are idle."""
        with self.lock:
            while self.idle and self.owner == os.getpid():
                self.idle.pop().close()
