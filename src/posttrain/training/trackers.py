"""Other places that a run's metrics can go to, beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio."""

import importlib
import importlib.util
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from posttrain.errors import UserError, nearest

TRACKERS = ("tensorboard", "wandb", "trackio")


class Tracker(Protocol):
    """Takes the rows of `metrics.jsonl` as they are written."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One row: `stage`, `step`, `kind` and numbers."""
        ...

    def close(self) -> None:
        """No more rows will come."""
        ...


def check_trackers(names: Iterable[str]) -> None:
    """Raises `UserError` for an unknown tracker and for one that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"unknown tracker '{name}': {nearest(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracker '{name}' is not installed: pip install 'posttrain[{name}]'")


def start_tracker(name: str, folder: Path) -> Tracker:
    """A tracker by name, for the run in `folder`. A run that goes on goes on in the tracker too."""
    check_trackers([name])
    if name == "tensorboard":
        return _TensorBoard(folder)
    key = _run_key(folder)
    module: Any = importlib.import_module(name)
    if name == "wandb":
        module.init(project="posttrain", name=folder.name, id=key, dir=str(folder), resume="allow")
    else:
        module.init(project="posttrain", name=f"{folder.name}-{key}", resume="allow")
    return _Module(module)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(folder / "tensorboard")

    def log(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.writer.close()


class _Module:
    """Weights & Biases, or trackio, which logs by the same two functions."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def log(self, row: Mapping[str, Any]) -> None:
        self.module.log({**_numbers(row), f"{row['stage']}/step": row["step"]})

    def close(self) -> None:
        self.module.finish()


def _run_key(folder: Path) -> str:
    """The run's name in a tracker, the same for every call that goes on with it."""
    path = folder / "tracker-id"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {f"{row['stage']}/{key}": v for key, v in row.items() if isinstance(v, int | float) and key != "step"}
