"""Encoded sequences on disk: flat arrays that are mapped into memory, and the report on how they were made.

A store is a folder: `tokens.bin` int32, `target.bin` bool and `origin.bin` uint8 hold all sequences end to end,
`offsets.bin` int64 says where each starts, `targets.bin` int64 how many of its tokens are trained, `ids.bin` holds the
sample ids (16 characters each), `scalars.bin` float32 `[names, S]` the scalars (NaN: none), `store.json` their names
and the report.
"""

import json
import math
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.data.sequence import Sequence

FORMAT = 2
"""Part of every key: raised when the files or the meaning of the tokens in them change."""

_FLAT = {"tokens": np.dtype(np.int32), "target": np.dtype(np.bool_), "origin": np.dtype(np.uint8)}
_INDEX = {
    "offsets": np.dtype(np.int64),
    "targets": np.dtype(np.int64),
    "ids": np.dtype("S16"),
    "scalars": np.dtype(np.float32),
}
_WINDOW = 2**14
_UNFINISHED = ".unfinished-"
_DAY = 24 * 3600


@dataclass(frozen=True)
class Example:
    """One refused row: its number in its source, its `Sample.id`, and what was found."""

    row: int
    id: str
    detail: str


@dataclass
class Report:
    """What became of the rows. `refused` counts by reason; `examples` holds the first 1,000 of each reason.

    `kept` counts samples (a preference pair is one); `tokens` and `trained_tokens` count over all their sequences.
    """

    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    truncated: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> "Report":
        """Inverse of `dataclasses.asdict`."""
        examples = {reason: [Example(**item) for item in items] for reason, items in stored["examples"].items()}
        return Report(**{**stored, "examples": examples})


class EncodedDataset:
    """Sequences by index, read from memory-mapped files.

    `lengths[S]` and `targets[S]` int64: tokens and trained tokens of each sequence. `sample_ids[S]`: bytes.
    `scalars`: `[S]` float32 by name, NaN where a sequence has none. With
    `pairs`, sequence 2i is the chosen side and 2i + 1 the rejected side of a pair.
    """

    def __init__(self, folder: Path, temporary: "tempfile.TemporaryDirectory[str] | None" = None) -> None:
        stored = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.pairs: bool = stored["pairs"]
        self.report = Report.from_json(stored["report"])
        self._flat = {name: _mapped(folder, name) for name in _FLAT}
        self._offsets = _mapped(folder, "offsets")
        self.sample_ids = _mapped(folder, "ids")
        self.targets: npt.NDArray[np.int64] = _mapped(folder, "targets")
        self.lengths: npt.NDArray[np.int64] = np.diff(self._offsets)
        names = stored["scalars"]
        values: Any = _mapped(folder, "scalars").reshape(len(names), len(self)) if names else []
        self.scalars: dict[str, npt.NDArray[np.float32]] = dict(zip(names, values, strict=True))
        self._temporary = temporary  # the files of a data set without a cache go when it goes

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sequence:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no sequence {index}; there are {len(self)}")
        index %= len(self)
        part = slice(int(self._offsets[index]), int(self._offsets[index + 1]))
        tokens, target, origin = (self._flat[name][part] for name in _FLAT)
        sample_id = self.sample_ids[index].decode()
        scalars = {
            name: float(values[index]) for name, values in self.scalars.items() if values[index] == values[index]
        }
        if not self.pairs:
            return Sequence(tokens, target, origin, sample_id, scalars=scalars)
        scalars["chosen"] = 1.0 - index % 2
        return Sequence(tokens, target, origin, sample_id, group=sample_id, scalars=scalars)

    def kinds(self) -> list[Sequence]:
        """The first sequence (pair), and the first that lacks each scalar: what one can be asked, all can."""
        first = [0, *(int(np.isnan(values).argmax()) for values in self.scalars.values())]
        sides = {row - row % 2 + side for row in first for side in (0, 1)}
        rows = sorted(sides if self.pairs else set(first))
        return [self[row] for row in rows]

    def last_trained_tokens(self) -> Iterator[npt.NDArray[np.int32]]:
        """The last token of every run of trained tokens (a turn's end), some thousand sequences at a time."""
        for start in range(0, len(self), _WINDOW):
            offsets = self._offsets[start : start + _WINDOW + 1]
            part = slice(int(offsets[0]), int(offsets[-1]))
            target = self._flat["target"][part]
            goes_on = np.append(target[1:], False)
            goes_on[offsets[1:] - offsets[0] - 1] = False  # no run goes on into the next sequence
            yield self._flat["tokens"][part][target & ~goes_on]

    def __iter__(self) -> Iterator[Sequence]:
        return (self[index] for index in range(len(self)))


class StoreWriter:
    """Appends sequences to the files of a new store; only their ids, offsets and counts stay in memory."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.folder = folder
        self._flat = {name: files.enter_context((folder / f"{name}.bin").open("wb")) for name in _FLAT}
        self._offsets, self._targets, self._ids = array("q", [0]), array("q"), bytearray()
        self._scalars: dict[str, array[float]] = {}

    def add(self, sequence: Sequence, scalars: Mapping[str, float] | None = None) -> None:
        """Append one sequence, with the scalars of its sample."""
        for name, value in (scalars or {}).items():
            values = self._scalars.setdefault(name, array("f"))
            values.extend([math.nan] * (len(self._targets) - len(values)))
            values.append(value)
        for name, file in self._flat.items():
            file.write(getattr(sequence, name).astype(_FLAT[name], copy=False).tobytes())
        self._offsets.append(self._offsets[-1] + len(sequence))
        self._targets.append(sequence.targets)
        self._ids += sequence.sample_id.encode().ljust(_INDEX["ids"].itemsize, b"\0")

    def publish(self, target: Path, pairs: bool, report: Report) -> None:
        """Bring everything to the disk, then give the store its name in one step.

        Where another process was faster, its equal store stays.
        """
        for name, values in (("offsets", self._offsets), ("targets", self._targets), ("ids", self._ids)):
            (self.folder / f"{name}.bin").write_bytes(values)
        for scalars in self._scalars.values():
            scalars.extend([math.nan] * (len(self._targets) - len(scalars)))
        if self._scalars:
            (self.folder / "scalars.bin").write_bytes(b"".join(values.tobytes() for values in self._scalars.values()))
        stored = {"pairs": pairs, "scalars": list(self._scalars), "report": asdict(report)}
        (self.folder / "store.json").write_text(json.dumps(stored, ensure_ascii=False, indent=1), encoding="utf-8")
        for file in self._flat.values():
            file.flush()
        for path in self.folder.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
        try:
            self.folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(self.folder)


@contextmanager
def new_store(parent: Path) -> Iterator[StoreWriter]:
    """A writer into a folder of `parent` whose name is never read.

    It is removed on a failure; those that killed processes left behind are removed after a day.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for folder in parent.glob(f"{_UNFINISHED}*"):
        if time.time() - folder.stat().st_mtime > _DAY:
            shutil.rmtree(folder, ignore_errors=True)
    folder = parent / f"{_UNFINISHED}{os.getpid()}-{time.time_ns()}"
    folder.mkdir()
    try:
        with ExitStack() as files:
            yield StoreWriter(folder, files)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def open_store(folder: Path) -> EncodedDataset | None:
    """The stored data set, or None where there is none; one whose files were damaged is removed."""
    if not folder.is_dir():
        return None
    try:
        dataset = EncodedDataset(folder)
        sizes = {len(array) for array in dataset._flat.values()} | {int(dataset._offsets[-1])}
        counts = {len(dataset), len(dataset.sample_ids), len(dataset.targets)}
        if len(sizes) == len(counts) == 1:
            return dataset
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the same as damaged
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _mapped(folder: Path, name: str) -> npt.NDArray[Any]:
    return np.asarray(np.memmap(folder / f"{name}.bin", dtype=(_FLAT | _INDEX)[name], mode="r"))
