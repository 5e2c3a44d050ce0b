"""What a run writes while it goes: `metrics.jsonl`, `samples/*.jsonl`, and trackers by name."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.training.trackers import start_tracker

METRICS = "metrics.jsonl"


class Journal:
    """Append-only JSON lines of a run directory. Only an `active` one (the first rank's) writes.

    `position()` and `rewind()` make resuming exact: what was written after the moment that a run goes on from is cut
    off, because it will be written again.
    """

    def __init__(self, folder: Path, *, active: bool = True, trackers: Iterable[str] = ()) -> None:
        self.folder, self.active = folder, active
        self._start: dict[str, int] | None = None
        self._trackers = [start_tracker(name, folder) for name in trackers] if active else []

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`: `stage`, `step`, `kind` and numbers."""
        self._append(METRICS, [row])
        for tracker in self._trackers:
            tracker.log(row)

    def answers(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Generated answers, one line each, to `samples/<stage>.jsonl`."""
        self._append(f"samples/{stage}.jsonl", rows)

    def begin_stage(self, start: Mapping[str, int] | None = None) -> dict[str, int]:
        """A stage begins here, or began at `start` in an earlier call. Returns where, for the manifest."""
        self._start = self.position() if start is None else dict(start)
        return self._start

    def restart_stage(self) -> None:
        """Cut off what earlier calls wrote of this stage: it is done again from its beginning."""
        if self._start is not None:
            self.rewind(self._start)

    def position(self) -> dict[str, int]:
        """Sizes of the files as they are now."""
        paths = [self.folder / METRICS, *sorted((self.folder / "samples").glob("*.jsonl"))]
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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise UserError(
                f"cannot write '{path}': {error.strerror or error}; mend that and run the same command again: it goes "
                "on from the last checkpoint"
            ) from error
