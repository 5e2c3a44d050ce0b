"""Encoded sequences on disk: flat arrays that are mapped into memory, and the report on how they were made.

A store is a folder: `tokens.bin` int32, `target.bin` bool and `origin.bin` uint8 hold all sequences end to end,
`offsets.bin` int64 says where each starts, `targets.bin` int64 how many of its tokens are trained, `ids.bin` holds the
sample ids (16 characters each), `store.json` the report.
"""

import json
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

FORMAT = 1
"""Part of every key: raised when the files or the meaning of the tokens in them change."""

_FLAT = {"tokens": np.dtype(np.int32), "target": np.dtype(np.bool_), "origin": np.dtype(np.uint8)}
_INDEX = {"offsets": np.dtype(np.int64), "targets": np.dtype(np.int64), "ids": np.dtype("S16")}
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
    """What became of the rows. `refused` counts by reason; `examples` holds the first 20 of each reason.

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

    `lengths[S]` and `targets[S]` int64: tokens and trained tokens of each sequence. `sample_ids[S]`: bytes. With
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
        if not self.pairs:
            return Sequence(tokens, target, origin, sample_id)
        return Sequence(tokens, target, origin, sample_id, group=sample_id, scalars={"chosen": 1.0 - index % 2})

    def __iter__(self) -> Iterator[Sequence]:
        return (self[index] for index in range(len(self)))


class StoreWriter:
    """Appends sequences to the files of a new store; only their ids, offsets and counts stay in memory."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.folder = folder
        self._flat = {name: files.enter_context((folder / f"{name}.bin").open("wb")) for name in _FLAT}
        self._offsets, self._targets, self._ids = array("q", [0]), array("q"), bytearray()

    def add(self, sequence: Sequence) -> None:
        """Append one sequence."""
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
        stored = {"pairs": pairs, "report": asdict(report)}
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
