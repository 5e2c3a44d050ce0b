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

import json
import math
import os
import sys
from collections.abc import Mapping
from collections.abc import Sequence as List
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import UserError
from posttrain.rewards.workers import Workers

Failure = Literal["syntax", "error", "time", "memory", "output", "crashed", "broken"]
"""Not Python; an exception; out of time; out of memory; too much output; ended by a signal or by itself; and of the
process that runs programs, which says nothing of this one: it broke down."""

_GRACE = 10.0  # seconds that the worker itself may take beyond a program's time before it counts as broken
_workers = Workers(Path(__file__).with_name("sandbox_worker.py"))


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
    request: dict[str, Any] = {"code": code, "result": result, "inputs": dict(inputs or {}), "readable": list(readable)}
    cpu = limits.seconds if limits.cpu_seconds is None else limits.cpu_seconds
    request["limits"] = {**asdict(limits), "cpu_seconds": math.ceil(cpu)}
    try:
        reply = _workers.ask(request, limits.seconds + _GRACE)
    except ConnectionError as error:
        return Outcome(failure="broken", error=f"the process that runs programs broke down ({error})")
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
