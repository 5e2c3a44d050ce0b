"""Hashes that name what an output depends on: fields, files, weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

LARGE_FILE = 256 * 2**20
"""Weights beyond this are named by size and time of change instead of by content: hashing them would take minutes."""

WITHOUT_EFFECT = frozenset({"log_every", "checkpoint_every", "micro_batch_tokens", "sharding", "slots", "concurrency"})
"""Fields of recipes that say how fast something is computed or what is shown of it, and not what comes out."""


def digest(content: Any) -> str:
    """16 hex digits that name JSON-able content."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def deciding(fields: BaseModel) -> dict[str, Any]:
    """The fields of a part of a recipe that decide what comes out: all but `WITHOUT_EFFECT`, at any depth."""
    return fields.model_dump(exclude=_without_effect(fields))


def _without_effect(fields: BaseModel) -> dict[str, Any]:
    """As pydantic excludes. A piece's own options are no fields: one of them that is called 'slots' may well matter."""
    found: dict[str, Any] = {name: True for name in type(fields).model_fields if name in WITHOUT_EFFECT}
    below = {name: _without_effect(value) for name, value in fields if isinstance(value, BaseModel)}
    return found | {name: inner for name, inner in below.items() if inner}


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change and size of a file, or of all files of a folder; nothing where there is none."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.exists()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def folder_fingerprint(folder: Path) -> str:
    """Of the files of a model's folder, without its card."""
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".md":
            size = path.stat().st_size
            content = path.stat().st_mtime_ns if size > LARGE_FILE else hashlib.blake2b(path.read_bytes()).hexdigest()
            names.append([path.name, size, content])
    return digest(names)
