"""Many jobs, some at once: started, watched, interrupted together, and what failed told apart from what is done."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from posttrain.comparison.arms import Job
from posttrain.comparison.launching import Launcher, Running, log_file
from posttrain.comparison.progress import Board
from posttrain.comparison.result import Failure
from posttrain.errors import UserError
from posttrain.manifest import Manifest
from posttrain.stages import Context
from posttrain.terminal import Terminal
from posttrain.training.loop import Interrupted
from posttrain.training.ranks import Ranks

POLL = 0.1
LINES = 12
"""Of a failed run's output, from its end."""


def run_jobs(jobs: Sequence[Job], launcher: Launcher, terminal: Terminal) -> list[Failure]:
    """Run all jobs that are not finished yet; returns those that failed. The others go on without them.

    Ctrl-C (or SIGTERM) lets every running job save and end, and raises `Interrupted`; a second one kills them.
    """
    waiting, running, failures = [], dict[int, tuple[Job, Running]](), list[Failure]()
    with Board(terminal, len(jobs)) as board, _stops() as stops:
        for job in jobs:
            if is_finished(job):
                board.skipped(job)
            else:
                waiting.append(job)
        try:
            while waiting or running:
                if stops():
                    raise KeyboardInterrupt
                while waiting and len(running) < launcher.jobs:
                    job = waiting.pop(0)
                    _share_cache(job)
                    running[id(job)] = (job, launcher.start(job))
                    board.started(job)
                for key, (job, started) in list(running.items()):
                    code = started.poll()
                    if code is not None:
                        del running[key]
                        failure = _failure(job, code)
                        failures += [failure] if failure else []
                        board.ended(job, failure)
                board.refresh()
                time.sleep(POLL)
        except KeyboardInterrupt:
            _stop([started for _, started in running.values()], board, stops)
            raise Interrupted from None
        except BaseException:
            _kill([started for _, started in running.values()])
            raise
    return failures


def is_finished(job: Job) -> bool:
    """Has an earlier call finished it? Raises `UserError` for a folder that holds a run of something else."""
    if not (job.folder / "manifest.json").is_file():
        return False
    try:
        manifest = Manifest.open(Context(job.recipe, Ranks(), Terminal(quiet=True)))
    except UserError as error:
        differs = str(error).partition(": give another folder")[0]
        raise UserError(
            f"{differs}: a comparison of this name was made with other settings; give another folder with --out (or "
            "another name), or move this one aside"
        ) from None
    return all(stage["status"] == "finished" for stage in manifest.stages.values())


def _share_cache(job: Job) -> None:
    """Runs keep tokens in `.cache` beside their folders: let that be the comparison's for every arm."""
    link, shared = job.folder.parent / ".cache", job.folder.parent.parent / ".cache"
    link.parent.mkdir(parents=True, exist_ok=True)
    shared.mkdir(exist_ok=True)
    with suppress(OSError):  # it is there, or the file system has no links: then each arm has its own
        link.symlink_to(os.path.relpath(shared, link.parent), target_is_directory=True)


def _failure(job: Job, code: int) -> Failure | None:
    if code == 0:
        return None
    lines = _last_lines(log_file(job))
    said = next((line for line in reversed(lines) if line.startswith("error: ")), "").removeprefix("error: ")
    killed = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return Failure(job.arm, job.seed, str(job.folder), said or killed, lines)


def _last_lines(path: Path) -> list[str]:
    """The end of what a run has said, without its lines for machines."""
    if not path.is_file():
        return []
    text = path.read_bytes()[-20_000:].decode(errors="replace")
    return [line for line in text.splitlines() if line.strip() and not _is_event(line)][-LINES:]


def _is_event(line: str) -> bool:
    with suppress(ValueError):
        content: Any = json.loads(line)
        return isinstance(content, dict) and "event" in content
    return False


def _stop(running: Sequence[Running], board: Board, stops: Callable[[], int]) -> None:
    """Let all save and end; at a second Ctrl-C, kill them."""
    board.stopping(len(running))
    asked = stops()
    try:
        for started in running:
            started.interrupt()
        while any(started.poll() is None for started in running):
            if stops() > asked:
                raise KeyboardInterrupt
            time.sleep(POLL)
    except KeyboardInterrupt:
        _kill(running)
        raise


def _kill(running: Sequence[Running]) -> None:
    for started in running:
        started.kill()


@contextmanager
def _stops() -> Iterator[Callable[[], int]]:
    """How often Ctrl-C was pressed, or SIGTERM came, which schedulers send.

    Counted, to be looked at between polls: an exception that a signal raises is lost where a finaliser runs.
    """
    count = 0

    def handle(number: int, frame: Any) -> None:
        nonlocal count
        count += 1

    if threading.current_thread() is not threading.main_thread():
        yield lambda: count
        return
    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: count
    finally:
        for number, before in old.items():
            signal.signal(number, before)
