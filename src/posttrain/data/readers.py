"""Files, folders and hub names to samples, one row at a time: a data set larger than memory is fine."""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from posttrain.data.row_shapes import RowError, check_columns, check_shape, detect_shape, read_row, read_scalars, rename
from posttrain.data.sample import Sample
from posttrain.errors import UserError, nearest

_CHUNK = 1 << 16
_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[\w.-]+))?")


@dataclass(frozen=True)
class _Source:
    """Numbered rows of a file or data set; `unit` is what the numbers count ("line" or "row", from 1)."""

    name: str
    unit: str
    rows: Iterator[tuple[int, Any]]


def read_samples(
    path_or_name: str,
    *,
    shape: str = "auto",
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    scalars: List[str] = (),
) -> Iterator[Sample]:
    """Samples of a .jsonl, .json, .parquet or .csv file, a folder of `datasets.save_to_disk`, or a hub name.

    A hub name is `owner/name` or `owner/name:configuration`; it is looked up only where no such file or folder is.
    `shape` names one of `row_shapes.SHAPES`; `auto` takes the one that fits the columns of the first row. `split`
    picks a part of a folder or hub data set (default: `train`, or the only one). `columns` renames: their name -> ours.
    `limit` stops after so many rows. `scalars`: columns of numbers that go into `Sample.scalars`.
    `Sample.meta` gets `source` and `row` (the line in a .jsonl file, otherwise the number of the row, from 1).

    Raises `UserError`: at once for a missing or unknown file; at its row for a bad one, with file, line and field; at
    the end for a file without rows.
    """
    check_shape(shape)
    check_columns(columns or {})
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it has to be at least 1, or none")
    source = _open(path_or_name, split)
    return _samples(source, shape, columns or {}, limit, scalars)


def fingerprint(
    path_or_name: str,
    *,
    shape: str = "auto",
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> str:
    """Hash of everything that decides what `read_samples` with the same arguments gives: the bytes and the options."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([shape, split, dict(columns or {}), limit]).encode())
    path = Path(path_or_name).expanduser()
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    if path.exists():
        for file in files:
            digest.update(str(file.relative_to(path)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
    elif _is_hub_name(path_or_name):
        digest.update(_hub_dataset(path_or_name, split)._fingerprint.encode())
    else:
        raise _missing(path_or_name)
    return digest.hexdigest()


def _samples(
    source: _Source, shape: str, columns: Mapping[str, str], limit: int | None, scalars: List[str]
) -> Iterator[Sample]:
    read = 0
    for number, row in islice(source.rows, limit):
        try:
            if not isinstance(row, Mapping):
                raise RowError(f"a row has to be a JSON object, found {type(row).__name__}")
            renamed = rename(row, columns)
            if shape == "auto":
                shape = detect_shape(renamed)
            sample = read_row(renamed, shape)
            meta = {**sample.meta, "source": source.name, "row": number}
            sample = replace(sample, meta=meta, scalars={**sample.scalars, **read_scalars(renamed, scalars)})
            sample.id  # noqa: B018  half of a surrogate pair has no UTF-8 form: found here, not in the tokenizer
        except RowError as error:
            seen = "" if shape == "auto" else f" (read as shape '{shape}')"
            raise UserError(f"{source.name}, {source.unit} {number}{seen}: {error}") from None
        except UnicodeEncodeError as error:
            raise UserError(f"{source.name}, {source.unit} {number}: text that is not Unicode: {error}") from None
        read += 1
        yield sample
    if not read:
        raise UserError(f"{source.name} has no rows; give a file with at least one")


def _open(path_or_name: str, split: str | None) -> _Source:
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return _Source(path_or_name, "row", enumerate(_dataset_rows(_folder_dataset(path, split)), 1))
    if path.is_file():
        if split is not None:
            raise UserError(f"{path_or_name} is a file and has no splits; leave out split: {split}")
        if path.suffix not in _READERS:
            raise UserError(f"{path_or_name}: unknown kind of file '{path.suffix}'; known: {', '.join(_READERS)}")
        unit = "line" if path.suffix == ".jsonl" else "row"
        return _Source(path_or_name, unit, _READERS[path.suffix](path))
    if _is_hub_name(path_or_name):
        return _Source(path_or_name, "row", enumerate(_dataset_rows(_hub_dataset(path_or_name, split)), 1))
    raise _missing(path_or_name)


def _is_hub_name(name: str) -> bool:
    """`owner/name`, and neither a file that is not there nor anything in a folder that is: no network for a typo."""
    path = Path(name)
    return bool(_HUB_NAME.fullmatch(name)) and path.suffix not in _READERS and not path.parent.is_dir()


def _missing(name: str) -> UserError:
    path = Path(name).expanduser()
    hint = nearest(path.name, (item.name for item in path.parent.iterdir())) if path.parent.is_dir() else ""
    return UserError(
        f"no such file or folder: {name} (looked from {Path.cwd()}); "
        f"{hint + ' ' if hint.startswith('did') else ''}Give a {', '.join(_READERS)} file, "
        "a folder of datasets.save_to_disk, or a hub name owner/name"
    )


# --- files ----------------------------------------------------------------------------------------------------------


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = _decoded(line, path, number).removeprefix("\ufeff").strip()
            if not text:
                continue
            try:
                yield number, json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: broken JSON at column {error.colno} ({error.msg}): "
                    f"{_around(text, error)}; every line has to be one whole JSON object"
                ) from None


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); convert it"
        ) from None


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((char for char in iter(lambda: file.read(1), "") if not char.isspace()), "")
            if first == "[":
                yield from enumerate(_array_items(file, path), 1)
                return
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    if first not in ("{", ""):
        raise UserError(f"{path}: starts with '{first}'; a .json file has to hold an array of objects: [{{...}}, ...]")
    try:
        yield from _jsonl_rows(path)  # many .json files hold one object a line
    except UserError as error:
        raise UserError(f"{error}\nA .json file holds either an array of objects or one object a line") from None


def _array_items(file: TextIO, path: Path) -> Iterator[Any]:
    """Items of a JSON array whose opening bracket has been read, without holding the whole of it."""
    decode = json.JSONDecoder().raw_decode
    blank = re.compile(r"\s*")
    text, place, line, opened = file.read(_CHUNK), 0, 1, True
    while True:
        start = place = blank.match(text, place).end()  # type: ignore[union-attr]
        try:
            if text[place : place + 1] == "]":
                return
            if not opened:
                if text[place : place + 1] != ",":
                    raise json.JSONDecodeError("expecting ',' or ']' between rows", text, place)
                place = blank.match(text, place + 1).end()  # type: ignore[union-attr]
            item, place = decode(text, place)
        except json.JSONDecodeError as error:
            more = file.read(max(_CHUNK, len(text) - start))  # doubling: one long row is not scanned again and again
            if not more:
                at = line + text.count("\n", 0, error.pos)
                raise UserError(f"{path}, near line {at}: broken JSON ({error.msg}): {_around(text, error)}") from None
            line += text.count("\n", 0, start)
            text, place = text[start:] + more, 0
            continue
        opened = False
        yield item


def _around(text: str, error: json.JSONDecodeError) -> str:
    return repr(text[max(0, error.pos - 30) : error.pos + 30]) if text[error.pos :] else "the text ends too early"


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is shorter than some conversations
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, strict=True), 1):
                if None in row:
                    raise UserError(
                        f"{path}, row {number}: more cells than the header has names; quote cells with commas"
                    )
                yield number, {key: cell for key, cell in row.items() if cell not in (None, "")}
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file with a header: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=256))
            yield from enumerate(map(_without_nulls, chain.from_iterable(batches)), 1)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
}


# --- data sets of the `datasets` library ------------------------------------------------------------------------------


def _folder_dataset(path: Path, split: str | None) -> Any:
    if not (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file():
        inside = sorted(item.name for item in path.iterdir() if item.suffix in _READERS)
        hint = f"name one of its files: {', '.join(inside[:5])}" if inside else "it holds no readable file either"
        raise UserError(f"{path} is no folder of datasets.save_to_disk (it has no state.json); {hint}")
    from datasets import load_from_disk

    return _pick_split(load_from_disk(str(path)), str(path), split)


def _hub_dataset(name: str, split: str | None) -> Any:
    matched = _HUB_NAME.fullmatch(name)
    if matched is None:
        raise UserError(f"no such file or folder: {name}")
    from datasets import load_dataset

    try:
        dataset = load_dataset(matched["name"], matched["config"])
    except Exception as error:  # offline, gated, unknown, several configurations: the library says which
        raise UserError(
            f"'{name}' is no file or folder here, and as a data set of the hub it cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    return _pick_split(dataset, name, split)


def _pick_split(dataset: Any, name: str, split: str | None) -> Any:
    if not isinstance(dataset, dict):
        if split is not None:
            raise UserError(f"{name} holds a single data set without splits; leave out split: {split}")
        return dataset
    wanted = split or ("train" if "train" in dataset else next(iter(dataset)) if len(dataset) == 1 else "")
    if wanted not in dataset:
        problem = f"has no split '{split}'" if split else "has several splits, and none is called train"
        raise UserError(f"{name} {problem}; set split to one of: {', '.join(dataset)}")
    return dataset[wanted]


def _dataset_rows(dataset: Any) -> Iterator[Any]:
    return (_without_nulls(row) for row in dataset)


def _without_nulls(value: Any) -> Any:
    """Arrow gives every object the keys of all of them; a null there stands for a key that the row did not have."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
