"""Running programs that a model wrote, in processes of their own.

    run_python("def solution():\\n    return 6 * 7", result="solution()").value      # 42

Linux only. Every program is a fork of a small process (`sandbox_worker`) that has the standard library and nothing
else. What holds always: no environment variable of this process is passed on; an empty folder, emptied
afterwards; limits of wall-clock and CPU time, address space, output, size of a file and number of open files; root's
capabilities are given up; a program that runs out of time is killed with its process group.

What holds where the kernel offers it (no privileges are needed; `isolation` tries it out and says what holds here):

- No network, no further process or thread, no signal to another one (seccomp, on x86-64 and ARM64).
- No file is read but Python's and the system's libraries, none written outside of the folder (Landlock, Linux 6.2);
  modes, owners and times of files stay as they are (seccomp).

What is not isolated: the kernel itself (a program that exploits it is out); the user id; which files there are, and how
large (`stat`), for whoever knows their names; the cores that others compute on; and the total size of a program's files
(each one is limited). Where `isolation` says that files are open, a program reads and destroys whatever this user may;
where it says that processes are allowed, one that leaves its process group stays behind. This keeps away accidents, and
what a language model thinks of. For programs of a human adversary use a virtual machine.

A program can give back any value it likes: what decides whether it is right must not be known inside.
"""

import atexit
import json
import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from collections.abc import Sequence as List
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import UserError

Failure = Literal["syntax", "error", "time", "memory", "output", "crashed"]
"""Not Python; an exception; out of time; out of memory; too much output; ended by a signal or by itself."""

_GRACE = 10.0  # seconds that the worker itself may take beyond a program's time before it counts as broken
_WORKER = Path(__file__).with_name("sandbox_worker.py")


@dataclass(frozen=True)
class Limits:
    """What one program may use: wall-clock `seconds`, `cpu_seconds` (None: as many), bytes of address space, of output
    (printed and returned, each) and of any one file."""

    seconds: float = 10.0
    cpu_seconds: float | None = None
    memory_bytes: int = 512 << 20
    output_bytes: int = 64 << 10
    file_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"limit '{name}' of a program must be more than 0, found {value}")


@dataclass(frozen=True)
class Outcome:
    """What came of a program: `value` of its result as JSON reads it, what it printed, or why (`failure`, `error`) not.

    `error` is one line for a person: `ZeroDivisionError: division by zero (line 3)`.
    """

    value: Any = None
    stdout: str = ""
    failure: Failure | None = None
    error: str = ""


@dataclass(frozen=True)
class Isolation:
    """What was found to be cut off on this machine, by trying it."""

    network: bool
    processes: bool
    files: bool
    signals: bool


def run_python(
    code: str,
    limits: Limits = Limits(),
    *,
    result: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    readable: List[str] = (),
) -> Outcome:
    """Run a program and read what `result`, an expression of its names, is worth (None: nothing is read).

    `inputs`: variables that it finds (JSON values). `readable`: files and folders besides the libraries that it may
    read. The standard output and error are one text. Threads may call it side by side. Whatever the program does is in
    the outcome; what is raised is `UserError` where there is no Linux, or no process can be started.
    """
    request = {"code": code, "result": result, "inputs": dict(inputs or {}), "readable": list(readable)}
    cpu = limits.seconds if limits.cpu_seconds is None else limits.cpu_seconds
    request["limits"] = {**asdict(limits), "cpu_seconds": math.ceil(cpu)}
    worker = _workers.take()
    try:
        reply = worker.ask(json.dumps(request).encode(), limits.seconds + _GRACE)
    except BaseException as error:  # also when interrupted: its answer would go to the next one who asks
        worker.close()
        if isinstance(error, ConnectionError):
            return Outcome(failure="crashed", error=f"the process that runs programs broke down ({error})")
        raise
    _workers.put_back(worker)
    return _outcome(reply, limits)


def run_python_many(
    codes: List[str],
    limits: Limits = Limits(),
    *,
    result: str | None = None,
    inputs: List[Mapping[str, Any]] | None = None,
    readable: List[str] = (),
    at_once: int | None = None,
) -> list[Outcome]:
    """`run_python` of several programs, `at_once` side by side (default: as many as there are cores to use).

    `inputs`: the variables of each.
    """
    width = min(len(codes), at_once or _cores())
    given = [{}] * len(codes) if inputs is None else inputs

    def run(code: str, names: Mapping[str, Any]) -> Outcome:
        return run_python(code, limits, result=result, inputs=names, readable=readable)

    if width <= 1:
        return [run(code, names) for code, names in zip(codes, given, strict=True)]
    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(run, codes, given))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


@lru_cache(maxsize=1)
def isolation() -> Isolation:
    """What programs are kept from on this machine: found out by a program that tries."""
    tried = run_python(_TRY, result="tried", inputs={"other": os.getpid()})
    if tried.failure is not None:
        raise UserError(f"programs cannot be run here: {tried.error}")
    return Isolation(**tried.value)


_TRY = """
import os, socket
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False
def divide():
    if os.fork() == 0:
        os._exit(0)
tried = {
    "network": refused(socket.socket),
    "processes": refused(divide),
    "files": refused(lambda: os.listdir("/")),
    "signals": refused(lambda: os.kill(other, 0)),
}
"""


def _outcome(reply: Mapping[str, Any], limits: Limits) -> Outcome:
    """What the reply means. The result was written by the program's process: anything may be in it."""
    told = {"time": f"it took more than {limits.seconds:g} s", "output": f"more than {limits.output_bytes:,} bytes"}
    printed, stopped, code = str(reply["output"])[: limits.output_bytes], reply["stopped"], int(reply["code"])
    if stopped in ("time", "output"):
        return Outcome(stdout=printed, failure=stopped, error=told[stopped])
    if code == -24:  # SIGXCPU
        return Outcome(stdout=printed, failure="time", error="it took too much CPU time")
    try:
        found = json.loads(reply["result"])
        failure = found.get("failure")
        if failure in ("syntax", "error", "memory"):
            return Outcome(stdout=printed, failure=failure, error=str(found.get("error", "")))
        return Outcome(found["value"], printed)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        ended = f"killed by signal {-code}" if code < 0 else f"it ended itself with exit code {code}"
        return Outcome(stdout=printed, failure="crashed", error=ended)


# --- workers ----------------------------------------------------------------------------------------------------------


class _Worker:
    """A process that runs one program at a time."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="posttrain-programs-")  # the worker removes it
        # The hash seed: a set is walked through in the same order every time.
        surroundings = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", str(_WORKER), self.folder],
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

    def ask(self, request: bytes, seconds: float) -> dict[str, Any]:
        """Send a request and wait for its reply; raises `ConnectionError`."""
        assert self.process.stdin is not None
        sent = memoryview(len(request).to_bytes(8) + request)
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


@dataclass
class _Workers:
    """Those that wait for a program, and belong to the process `owner`: a fork of it needs its own."""

    owner: int = field(default_factory=os.getpid)
    idle: list[_Worker] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> _Worker:
        if sys.platform != "linux":
            raise UserError(f"running programs is limited and isolated on Linux alone, and this is {sys.platform}")
        with self.lock:
            if self.idle:
                return self.idle.pop()
        try:
            return _Worker()
        except OSError as error:
            raise UserError(f"no process can be started to run programs in: {error}") from None

    def put_back(self, worker: _Worker) -> None:
        with self.lock:
            self.idle.append(worker)

    def close(self) -> None:
        """End all that are idle."""
        with self.lock:
            while self.idle and self.owner == os.getpid():
                self.idle.pop().close()


_workers = _Workers()
atexit.register(_workers.close)


def _after_fork() -> None:
    global _workers
    _workers = _Workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
