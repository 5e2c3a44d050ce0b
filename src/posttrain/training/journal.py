"""What a run writes while it goes: `metrics.jsonl`, `samples/*.jsonl`, and trackers by name."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.training.trackers import start_tracker

METRICS = "metrics.jsonl"


class Journal:
    """Append-only JSON lines of a run directory. Only an `active` one (the first rank's) writes.

    `position()` and `rewind()` make resuming exact: what the stage wrote after the moment that it goes on from is cut
    off, because it will be written again. What other stages wrote is left alone, wherever it stands.
    """

    def __init__(self, folder: Path, *, active: bool = True, trackers: Iterable[str] = ()) -> None:
        self.folder, self.active = folder, active
        self._stage: str | None = None
        self._trackers = [start_tracker(name, folder) for name in trackers] if active else []

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`: `stage`, `step`, `kind` and numbers."""
        self._append(METRICS, [row])
        for tracker in self._trackers:
            tracker.log(row)

    def answers(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Generated answers, one line each, to `samples/<stage>.jsonl`."""
        self._append(f"samples/{stage}.jsonl", rows)

    def begin_stage(self, stage: str) -> None:
        """From here on, what is counted and cut off is this stage's."""
        self._stage = stage
        if self.active:
            self._keep_rows(lambda row: True)

    def restart_stage(self) -> None:
        """Cut off all that earlier calls wrote of this stage: it is done again from its beginning."""
        if self._stage is not None:
            self.rewind({})

    def position(self) -> dict[str, int]:
        """How far the stage has written: its rows in `metrics.jsonl`, and the size of its file of answers.

        Before any `begin_stage`: all rows and files.
        """
        sizes = {str(path.relative_to(self.folder)): path.stat().st_size for path in self._answer_files()}
        return {METRICS: sum(self._is_own(row) for _, row in self._rows()), **sizes}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Cut the stage's rows and file back to an earlier `position()`; a file that did not exist then is removed."""
        if not self.active:
            return
        left = position.get(METRICS, 0)

        def keep(row: Mapping[str, Any]) -> bool:
            nonlocal left
            left -= self._is_own(row)
            return left >= 0 or not self._is_own(row)

        self._keep_rows(keep)
        for path in self._answer_files():
            name = str(path.relative_to(self.folder))
            if name not in position:
                path.unlink()
            elif path.stat().st_size > position[name]:
                with path.open("r+b") as file:
                    file.truncate(position[name])

    def close(self) -> None:
        """Let the trackers finish."""
        for tracker in self._trackers:
            tracker.close()

    def _is_own(self, row: Mapping[str, Any]) -> bool:
        return self._stage is None or row.get("stage") == self._stage

    def _answer_files(self) -> list[Path]:
        return sorted(
            (self.folder / "samples").glob("*.jsonl" if self._stage is None else f"{escape(self._stage)}.jsonl")
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Whole lines of `metrics.jsonl`, and what they say: a killed run may have left half of one at the end."""
        path = self.folder / METRICS
        if not path.is_file():
            return
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError):
                    yield line, json.loads(line if line.endswith(b"\n") else b"")

    def _keep_rows(self, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        """Take the other rows out of `metrics.jsonl`, and what is no row."""
        path = self.folder / METRICS
        kept = b"".join(line for line, row in self._rows() if keep(row))
        if not path.is_file() or path.stat().st_size == len(kept):
            return
        if not kept:
            path.unlink()
            return
        partial = path.with_name(METRICS + ".partial")
        partial.write_bytes(kept)
        partial.replace(path)

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
