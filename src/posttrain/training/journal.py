"""What a run writes while it goes: `metrics.jsonl`, `samples/*.jsonl`, and trackers by name."""

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import UserError, nearest

TRACKERS = ("tensorboard", "wandb", "trackio")


class Journal:
    """Append-only JSON lines of a run directory.

    `position()` and `rewind()` make resuming exact: what was written after the checkpoint that a run goes on from is
    cut off, because it will be written again.
    """

    def __init__(self, folder: Path, *, active: bool = True, trackers: Iterable[str] = ()) -> None:
        self.folder, self.active = folder, active
        self._trackers = [_tracker(name, folder) for name in trackers] if active else []

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`: `stage`, `step`, `kind` and numbers."""
        self._append("metrics.jsonl", [row])
        for tracker in self._trackers:
            tracker.log(row)

    def answers(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Generated answers, one line each, to `samples/<stage>.jsonl`."""
        self._append(f"samples/{stage}.jsonl", rows)

    def position(self) -> dict[str, int]:
        """Sizes of the files as they are now."""
        paths = [self.folder / "metrics.jsonl", *sorted((self.folder / "samples").glob("*.jsonl"))]
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in paths if path.exists()}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Cut the files back to an earlier `position()`; files that did not exist then are removed."""
        if not self.active:
            return
        for name, size in self.position().items():
            path = self.folder / name
            if name not in position:
                path.unlink()
            elif size > position[name]:
                with path.open("r+b") as file:
                    file.truncate(position[name])

    def close(self) -> None:
        """Let the trackers finish."""
        for tracker in self._trackers:
            tracker.close()

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        if not self.active:
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror or error}") from error


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(folder / "tensorboard")

    def log(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self.writer.add_scalar(f"{row['stage']}/{name}", value, row["step"])

    def close(self) -> None:
        self.writer.close()


class _RunTracker:
    """Weights & Biases, or trackio, which has the same interface."""

    def __init__(self, module: Any, folder: Path) -> None:
        self.module = module
        module.init(project="posttrain", name=folder.name, dir=str(folder))

    def log(self, row: Mapping[str, Any]) -> None:
        self.module.log({f"{row['stage']}/{name}": value for name, value in _numbers(row).items()})

    def close(self) -> None:
        self.module.finish()


def _tracker(name: str, folder: Path) -> Any:
    check_trackers([name])
    return _TensorBoard(folder) if name == "tensorboard" else _RunTracker(importlib.import_module(name), folder)


def check_trackers(names: Iterable[str]) -> None:
    """Raises `UserError` for an unknown tracker and for one that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"unknown tracker '{name}': {nearest(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracker '{name}' is not installed: pip install 'posttrain[{name}]'")


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
