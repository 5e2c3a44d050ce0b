"""The process that `sandbox` starts: it forks, confines and watches one program after another.

It is run by its path, with nothing in its environment, and imports the standard library alone: a fork of it is small,
fast and knows nothing of the process that trains. Requests come on standard input, replies go to standard output, each
as eight bytes of length and JSON.
"""

import ctypes
import gc
import json
import os
import platform
import random
import resource
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NoReturn

PRELOADED = "collections datetime decimal fractions functools heapq itertools math re sqlite3 statistics string typing"
"""Modules that programs often import: loaded once, for a fork has them."""
RESULT = 3
"""The file descriptor that a program's result is written to."""
OPEN_FILES = 32

# --- what a program may not do ----------------------------------------------------------------------------------------

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# System calls that fail with EPERM, with their numbers on x86-64 and ARM64 (None: it is not there): sockets, processes
# and threads, other programs, signals, other processes' memory, name spaces, higher limits, memory that is not counted
# or outlives the program, io_uring (it could do the same), and what Landlock leaves: modes, owners and times of files.
_FORBIDDEN = """
socket 41 198, socketpair 53 199, fork 57 None, vfork 58 None, clone 56 220, clone3 435 435, execve 59 221,
execveat 322 281, kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
pidfd_send_signal 424 424, pidfd_open 434 434, pidfd_getfd 438 438, ptrace 101 117, process_vm_readv 310 270,
process_vm_writev 311 271, unshare 272 97, setns 308 268, setrlimit 160 164, prlimit64 302 261, shmget 29 194,
msgget 68 186, semget 64 190, mq_open 240 180, memfd_create 319 279, memfd_secret 447 447, userfaultfd 323 282,
add_key 248 217, request_key 249 218, keyctl 250 219, bpf 321 280, perf_event_open 298 241,
open_by_handle_at 304 265, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427,
chmod 90 None, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 None, fchown 93 55, lchown 94 None,
fchownat 260 54, utime 132 None, utimes 235 None, futimesat 261 None, utimensat 280 88, setxattr 188 5,
lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
"""
# Landlock's rights: read files and folders; read, write and truncate a file; make and remove what is in a folder, too.
_READ, _WRITE_FILE, _OWN_FOLDER = 0b1100, 1 << 14 | 0b0110, 1 << 14 | 1 << 12 | 0b110111110
_SHIPPED = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def give_up_privileges() -> None:
    """No new privileges for good, and none of those that root has."""
    _libc.prctl(38, 1, 0, 0, 0)
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _libc.capset(header, none)


@lru_cache(maxsize=1)
def seccomp_filter() -> bytes | None:
    """The program (BPF) that refuses `_FORBIDDEN`; None on other processors."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return None
    column = list(_ARCHITECTURES).index(machine) + 1
    numbers = [row.split()[column] for row in _FORBIDDEN.split(",")]
    calls = [int(number) for number in numbers if number != "None"]
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06
    refuse = len(calls) + 1  # instructions from the first comparison to the refusal
    rows = [(load, 0, 0, 4), (equal, 1, 0, _ARCHITECTURES[machine]), (leave, 0, 0, 0x80000000), (load, 0, 0, 0)]
    rows.append((at_least, refuse, 0, 0x40000000))  # the calls of x32, under other numbers
    rows += [(equal, refuse - 1 - place, 0, call) for place, call in enumerate(calls)]
    rows += [(leave, 0, 0, 0x7FFF0000), (leave, 0, 0, 0x00050001)]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


def forbid_calls(refusals: bytes | None) -> None:
    """Refuse what the filter says, for good; nothing on systems without seccomp."""
    if refusals is not None:
        code = ctypes.create_string_buffer(refusals, len(refusals))
        _libc.prctl(22, 2, struct.pack("@HP", len(refusals) // 8, ctypes.addressof(code)), 0, 0)


def allowed_files(folder: str, readable: Iterable[str] = ()) -> int | None:
    """Landlock's rules: write in `folder` alone, read there, in Python's library and in `readable`; None without it."""
    version = _libc.syscall(444, None, 0, 1)
    if version < 3:  # before, truncating a file is not covered
        return None
    handled = (1 << 16) - 1 if version >= 5 else (1 << 15) - 1
    rules: int = _libc.syscall(444, struct.pack("=Q", handled), 8, 0)
    library = os.path.join(sys.base_prefix, "lib")
    allowed = [(path, _READ) for path in (library, *_SHIPPED, *readable)]
    for path, access in [*allowed, (folder, _OWN_FOLDER), ("/dev/null", _WRITE_FILE)]:
        with suppress(OSError):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access = access if os.path.isdir(path) else access & _WRITE_FILE
            _libc.syscall(445, rules, 1, struct.pack("=Qi", access, opened), 0)
            os.close(opened)
    return rules


def keep_to_files(rules: int | None) -> None:
    """Refuse all other files, for good; nothing on systems without Landlock."""
    if rules is not None:
        _libc.syscall(446, rules, 0)


def set_limits(limits: dict[str, Any]) -> None:
    """Resource limits of this process; they cannot be raised again."""
    cpu = int(limits["cpu_seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    for which, most in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (int(most), int(most)))


# --- one program ------------------------------------------------------------------------------------------------------


def run_here(request: dict[str, Any], folder: str, rules: int | None, output: int, result: int) -> NoReturn:
    """Become the program: confine this process, run it, write its result, end."""
    os.setsid()
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # die with the process that watches
    keep_to_files(rules)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2), (result, RESULT)):
        os.dup2(source, target)
    os.closerange(RESULT + 1, 256)
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = folder
    set_limits(request["limits"])
    forbid_calls(seccomp_filter())
    random.seed(0)  # a program is worth the same every time
    sent = _outcome(request["code"], request["result"], request["inputs"])
    with suppress(BaseException):
        sys.stdout.flush()
    with suppress(BaseException):
        sys.stderr.flush()
    while sent:
        sent = sent[os.write(RESULT, sent) :]
    os._exit(0)


def _outcome(code: str, result: str | None, inputs: dict[str, Any]) -> bytes:
    """What came of the program, as JSON."""
    names: dict[str, Any] = {"__name__": "__main__", **inputs}
    try:
        try:
            compiled = compile(code, "<program>", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return _json({"failure": "syntax", "error": _told(error)})
        with suppress(SystemExit):  # whatever its code: who ends early has ended
            exec(compiled, names)
        value = eval(result, names) if result is not None else None
        return _json({"value": value})
    except MemoryError:
        return _json({"failure": "memory", "error": "MemoryError"})
    except BaseException as error:
        return _json({"failure": "error", "error": _told(error)})


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode()


def _told(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (line 3)`."""
    line = getattr(error, "lineno", None)
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<program>":
            line = frame.tb_lineno
        frame = frame.tb_next
    message = getattr(error, "msg", None) or str(error)
    where = f" (line {line})" if line else ""
    return f"{type(error).__name__}{': ' if message else ''}{message:.300}{where}"


# --- watching it ------------------------------------------------------------------------------------------------------


def run(request: dict[str, Any], folder: str, usual: int | None) -> dict[str, Any]:
    """Run a program in a fork of this process, in an empty folder, and say what came of it. `usual`: its file rules."""
    rules = allowed_files(folder, request["readable"]) if request["readable"] else usual
    output, into_output = os.pipe()
    result, into_result = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run_here(request, folder, rules, into_output, into_result)
        finally:
            os._exit(1)
    os.close(into_output)
    os.close(into_result)
    if rules is not None and rules != usual:
        os.close(rules)
    read, stopped = _watch(request["limits"], output, result)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(output)
    os.close(result)
    _empty(folder)
    reply = {"output": read[output].decode(errors="replace"), "result": read[result].decode(errors="replace")}
    return {**reply, "stopped": stopped, "code": os.waitstatus_to_exitcode(status)}


def _watch(limits: dict[str, Any], output: int, result: int) -> tuple[dict[int, bytearray], str | None]:
    """Read what a program writes until both pipes are closed, or it is to be stopped, and why."""
    read = {output: bytearray(), result: bytearray()}
    end = time.monotonic() + limits["seconds"]
    waiting = select.poll()
    for pipe in read:
        waiting.register(pipe, select.POLLIN)
    waiting.register(0, 0)  # only to hear that nobody waits for the answer any more
    left = set(read)
    while left:
        for pipe, _ in waiting.poll(max(0.0, end - time.monotonic()) * 1000):
            if pipe == 0:
                return read, "abandoned"
            chunk = os.read(pipe, 1 << 16)
            read[pipe] += chunk
            if not chunk:
                waiting.unregister(pipe)
                left.discard(pipe)
            if len(read[pipe]) > limits["output_bytes"]:
                return read, "output"
        if left and time.monotonic() >= end:
            return read, "time"
    return read, None


def _empty(folder: str) -> None:
    """Remove what a program left."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def _receive() -> dict[str, Any] | None:
    head = sys.stdin.buffer.read(8)
    if len(head) < 8:
        return None
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read(int.from_bytes(head)))
    return request


def get_ready() -> None:
    """Do once what every fork has then."""
    for name in PRELOADED.split():
        with suppress(ImportError):
            __import__(name)
    # What Python sets up when it first compiles and fails: half of a short program's time.
    _outcome("def f():\n    return 1.5", "f()", {})
    _outcome("f(", None, {})
    _outcome("1 / 0", None, {})
    seccomp_filter()
    give_up_privileges()
    gc.collect()
    gc.freeze()  # a fork then shares these pages for good


def serve(folder: str) -> None:
    """Answer requests until nobody asks any more; then remove the folder."""
    get_ready()
    usual = allowed_files(folder)
    with suppress(BrokenPipeError):  # nobody waits for the answer any more
        while (request := _receive()) is not None:
            body = json.dumps(run(request, folder, usual)).encode()
            sent = len(body).to_bytes(8) + body
            while sent:
                sent = sent[os.write(1, sent) :]
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    serve(sys.argv[1])
