"""What a person sees of many runs: a line for each that is done, and a moving one for each that is running."""

import json
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from posttrain.comparison.arms import Job
from posttrain.comparison.result import Failure
from posttrain.reporting.formats import duration, measure
from posttrain.terminal import Terminal

LOOK = 0.5
"""Seconds between looks into the run folders."""


class Board:
    """Progress of `total` jobs: on a terminal lines that move, otherwise one JSON object for each change."""

    def __init__(self, terminal: Terminal, total: int) -> None:
        self._terminal, self._total, self._done, self._spent = terminal, total, 0, list[float]()
        self._running: dict[str, tuple[Job, float]] = {}
        self._looked = 0.0
        self._live = (
            Live(console=terminal.console, transient=True, auto_refresh=False) if terminal.interactive else None
        )

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: Job) -> None:
        """A job has begun."""
        self._running[str(job.folder)] = (job, time.monotonic())
        if self._live is None:
            self._event(job, "started")

    def skipped(self, job: Job) -> None:
        """A job was finished by an earlier call."""
        self._done += 1
        self._event(job, "skipped", Text.assemble(("✓ ", "dim"), (f"{job.label}: done before", "dim")))

    def ended(self, job: Job, failure: Failure | None) -> None:
        """A job is done, or has failed."""
        seconds = time.monotonic() - self._running.pop(str(job.folder))[1]
        self._done += 1
        if failure is not None:
            told = Text.assemble(("✗ ", "red"), (job.label, "bold"), f"  {failure.reason}")
            self._event(job, "failed", told, seconds=round(seconds, 1), reason=failure.reason)
            return
        self._spent.append(seconds)
        numbers = _accuracies(job.folder)
        shown = ", ".join(f"{stage} {measure('accuracy', value)}" for stage, value in numbers.items())
        told = Text.assemble(("✓ ", "green"), (job.label, "bold"), f"  {duration(seconds)}  {shown}")
        self._event(job, "finished", told, seconds=round(seconds, 1), accuracy=numbers)

    def stopping(self, running: int) -> None:
        """Ctrl-C: the running ones are saving."""
        self._terminal.event(
            "interrupting", f"stopping: {running} runs save and end (Ctrl-C again: at once)", running=running
        )

    def refresh(self) -> None:
        """Show how far the running ones are; looked up only now and then."""
        if self._live is None or time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for job, started in self._running.values():
            since = duration(time.monotonic() - started)
            table.add_row(Text(f"  {job.label}", "bold"), Text(since), Text(_state(job)))
        table.add_row(Text(f"  {self._done} of {self._total}", "dim"), "", Text(self._left(), "dim"))
        self._live.update(table, refresh=True)

    def _left(self) -> str:
        if not self._spent or not self._running:
            return ""
        mean, now = sum(self._spent) / len(self._spent), time.monotonic()
        behind = sum(min(now - started, mean) for _, started in self._running.values())
        return f"about {duration((mean * (self._total - self._done) - behind) / len(self._running))} left"

    def _event(self, job: Job, status: str, message: Any = "", **fields: Any) -> None:
        row = {"arm": job.arm, "seed": job.seed, "kind": job.kind, "set": dict(job.set), "status": status}
        self._terminal.event("job", message, **row, out=str(job.folder), **fields)


def _manifest(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads((folder / "manifest.json").read_bytes())
        return content if isinstance(content, dict) else {}
    return {}


def _accuracies(folder: Path) -> dict[str, float]:
    stages = _manifest(folder).get("stages", {})
    found = {name: stage.get("summary", {}).get("accuracy") for name, stage in stages.items()}
    return {name: value for name, value in found.items() if value is not None}


def _state(job: Job) -> str:
    """The stage that is running, and the step of a training."""
    stages = _manifest(job.folder).get("stages", {})
    name = next((name for name, stage in stages.items() if stage.get("status") == "running"), None)
    if name is None:
        return "starting" if not stages else ""
    if stages[name].get("kind") != "train":
        return str(name)
    steps = getattr(job.recipe.stages.get(name), "steps", None)
    return f"{name} step {_last_step(job.folder, name)}" + (f" of {steps}" if steps else "")


def _last_step(folder: Path, stage: str) -> int:
    """The step of the last whole line of the metrics."""
    with suppress(OSError), (folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 8192))
        for line in reversed(file.read().splitlines()):
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("stage") == stage:
                    return int(row.get("step", 0))
    return 0
