"""Reading a run directory that may still be written to, or that was left half-written by a crash."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.reporting.formats import is_number

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run directory holds, as far as it could be read.

    `stages`: the manifest's stages in order. `metrics`: stage -> kind ("train", "evaluation") -> rows ordered by step.
    `results`: evaluate stage -> its results. `answers`: stage -> its file under `samples/`. `notes`: what could not be
    read, one sentence each.
    """

    directory: Path
    manifest: Row
    stages: dict[str, Row]
    metrics: dict[str, dict[str, list[Row]]]
    results: dict[str, Row]
    answers: dict[str, Path]
    notes: list[str] = field(default_factory=list)


def read_run(directory: Path) -> Run:
    """Read everything but the answers, which may be large: `posttrain.reporting.answers` reads those it shows.

    Raises `UserError` when `directory` is not a run directory or its manifest is broken.
    """
    notes: list[str] = []
    manifest = _manifest(directory)
    stages = {str(name): stage for name, stage in _mapping(manifest.get("stages")).items() if isinstance(stage, dict)}
    return Run(
        directory=directory,
        manifest=manifest,
        stages=stages,
        metrics=_metrics(directory / "metrics.jsonl", notes),
        results=_results(directory / "results", list(stages), notes),
        answers={path.stem: path for path in _in_order(directory / "samples", "*.jsonl", list(stages))},
        notes=notes,
    )


def json_lines(path: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
    """(byte offset, object) of each line of a JSON-lines file; lines that are no object are left out.

    Adds to `notes`, once the file is read to its end, what was left out. A last line without its end is what a killed
    or running writer leaves.
    """
    broken, cut, offset = 0, False, 0
    with path.open("rb") as file:
        for line in file:
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield start, row
            elif line.endswith(b"\n"):
                broken += 1
            else:
                cut = True
    name = f"{path.parent.name}/{path.name}" if path.parent.name == "samples" else path.name
    if cut:
        notes.append(f"{name}: the last line was cut off and is left out.")
    if broken:
        notes.append(f"{name}: {broken} unreadable line{'s' if broken > 1 else ''} left out.")


def _manifest(directory: Path) -> Row:
    path = directory / "manifest.json"
    if not path.is_file():
        raise UserError(f"{directory}: no manifest.json found, so this is not a run directory; give the one of a run")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}); run the recipe's command again to mend it") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(manifest).__name__}")
    return manifest


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _metrics(path: Path, notes: list[str]) -> dict[str, dict[str, list[Row]]]:
    """A step that was logged twice (before a crash and again after the resume) counts once, as logged last."""
    found: dict[str, dict[str, dict[float, Row]]] = {}
    if not path.is_file():
        notes.append("metrics.jsonl: not there (yet).")
        return {}
    for _, row in json_lines(path, notes):
        step = row.get("step")
        if is_number(step):
            steps = found.setdefault(str(row.get("stage", "")), {}).setdefault(str(row.get("kind", "train")), {})
            steps.setdefault(float(step), {}).update(row)
    return {
        stage: {kind: [steps[step] for step in sorted(steps)] for kind, steps in kinds.items()}
        for stage, kinds in found.items()
    }


def _in_order(folder: Path, pattern: str, stages: list[str]) -> list[Path]:
    """Files named after stages, in the order of the stages; others after them, by name."""
    rank = {name: index for index, name in enumerate(stages)}
    return sorted(folder.glob(pattern), key=lambda path: (rank.get(path.stem, len(rank)), path.name))


def _results(folder: Path, stages: list[str], notes: list[str]) -> dict[str, Row]:
    results: dict[str, Row] = {}
    for path in _in_order(folder, "*.json", stages):
        try:
            result = json.loads(path.read_bytes())
        except ValueError:
            result = None
        if isinstance(result, dict):
            results[path.stem] = result
        else:
            notes.append(f"results/{path.name}: not readable as JSON, left out.")
    return results
