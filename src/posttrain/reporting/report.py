"""`write_report`: one self-contained HTML page from a run directory, whatever state the run is in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from posttrain.evaluation import saturation
from posttrain.recipe.yaml_text import inline
from posttrain.reporting import formats
from posttrain.reporting.answers import galleries
from posttrain.reporting.formats import duration, is_number, points
from posttrain.reporting.pages import environment, render, write
from posttrain.reporting.plots import Series, curve, series
from posttrain.reporting.reading import Row, Run, read_run
from posttrain.reporting.results import MAIN, columns, evaluations, task_sequences
from posttrain.reporting.timing import part_names, timings

TITLES = {
    "loss": "Loss",
    "accuracy": "Accuracy",
    "reward": "Reward",
    "imitated": "Share of imitation",
    "dead_groups": "Share of questions whose answers are worth the same",
    "length": "Tokens of an answer",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Trained tokens per second",
}
"""Metrics that are always in sight, in this order, under these titles; all others are under "more curves"."""


@dataclass(frozen=True)
class Chart:
    """One metric of a stage, drawn. `last`: the latest value of each line that has one; `heading`: its own title."""

    name: str
    svg: Markup
    lines: list[Series]
    last: list[str]
    heading: str = ""

    @property
    def main(self) -> bool:
        """Is it always in sight?"""
        return self.name in TITLES

    @property
    def title(self) -> str:
        """What stands above it."""
        return self.heading or TITLES.get(self.name, self.name)

    @property
    def every(self) -> int:
        """How many steps its points are the means of, at most."""
        return max(line.every for line in self.lines)

    @property
    def lost(self) -> int:
        """How many values were not finite."""
        return sum(line.lost for line in self.lines)


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path. The page loads nothing: styles, script and plots are inside.

    Raises `UserError` when `run_dir` is not a run directory. Whatever else is missing, cut off or broken is left out
    and named on the page.
    """
    run = read_run(Path(run_dir))
    return write(render("report.html", _content(run)), run.directory / "report.html")


def _content(run: Run) -> Row:
    """Everything that the template names."""
    manifest = run.manifest
    tables = evaluations(run)
    lines = [line for table in tables.values() for line in table]
    main, others = columns(lines)
    levels = {
        each.level for line in lines for each in line.metrics.values() if each.level is not None and each.interval
    }
    times = timings(run)
    trained = [stage for stage in run.metrics if run.stages.get(stage, {}).get("kind", "train") == "train"]
    curves = {stage: _charts(run.metrics[stage]) for stage in trained}
    return {
        "name": manifest.get("name") or run.directory.resolve().name,
        "status": str(manifest.get("status") or "unknown"),
        "error": manifest.get("error"),
        "manifest": {key: manifest.get(key) for key in ("created", "updated", "seed", "machine")},
        "total": sum(row.seconds for row in times),
        "stages": {name: _stage(stage) for name, stage in run.stages.items()},
        "evaluations": lines,
        "tables": list(tables.items()),
        "sequences": task_sequences(run),
        "levels": ", ".join(f"{100 * level:g}\u202f%" for level in sorted(levels)),
        "metric_columns": {name: MAIN.get(name, name.replace("_", " ").capitalize()) for name in main},
        "other_metrics": others,
        "curves": {stage: charts for stage, charts in curves.items() if charts},
        "saturation": {stage: text for stage in trained if (text := _saturation(run.metrics[stage]))},
        "galleries": galleries(run),
        "times": times,
        "time_parts": part_names(times),
        "longest": max((row.seconds for row in times), default=1.0),
        "changed": {key: [inline(value) for value in pair] for key, pair in _pairs(manifest.get("changed")).items()},
        "recipe": _block(manifest.get("recipe")),
        "command": manifest.get("command"),
        "environment": environment(manifest.get("machine"), git_commit=manifest.get("git_commit")),
        "versions": versions if isinstance(versions := manifest.get("versions"), dict) else {},
        "notes": list(dict.fromkeys([*_said(run), *run.notes])),
    }


def _said(run: Run) -> list[str]:
    """What stages say of themselves that nobody should overlook."""
    summaries = {name: stage.get("summary") for name, stage in run.stages.items()}
    return [
        f"{name} {each['note']}." for name, each in summaries.items() if isinstance(each, dict) and each.get("note")
    ]


def _block(recipe: Any) -> str:
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100) if recipe else ""


def _saturation(kinds: dict[str, list[Row]]) -> str:
    """When the reward stopped rising, in a sentence; empty where there is none."""
    found = saturation(kinds.get("train", []), kinds.get("evaluation", []))
    if found is None:
        return ""
    text = f"The mean reward came within 5 % of its best at step {found.step:g} of {found.last:g}"
    if found.before is None or found.after is None:
        return f"{text}."
    return f"{text}; held-out accuracy {points(found.before)} points by then, {points(found.after)} after."


def _seconds(stage: Row) -> float:
    return float(stage["seconds"]) if is_number(stage.get("seconds")) else 0.0


def _stage(stage: Row) -> Row:
    """A stage of the manifest with every field there, ready to print."""
    summary = stage.get("summary")
    return {
        "kind": str(stage.get("kind", "")),
        "status": str(stage.get("status", "")),
        "time": duration(_seconds(stage)) if _seconds(stage) else "",
        "fingerprint": str(stage.get("fingerprint") or "")[:12],
        "summary": {
            str(key).replace("_", " "): formats.measure(str(key), value) if is_number(value) else str(value)
            for key, value in (summary.items() if isinstance(summary, dict) else ())
        },
    }


def _pairs(changed: Any) -> dict[str, tuple[Any, Any]]:
    given = changed.items() if isinstance(changed, dict) else ()
    return {str(key): (pair[0], pair[1]) for key, pair in given if isinstance(pair, list | tuple) and len(pair) == 2}


def _charts(kinds: dict[str, list[Row]]) -> list[Chart]:
    """A chart for each metric of a stage, those of `TITLES` first; training and evaluation share one."""
    found = {name for rows in kinds.values() for row in rows for name, value in row.items() if is_number(value)}
    names = found - {"step", "seconds"} - {f"{name}_{end}" for name in found for end in ("low", "high")}
    order = {name: index for index, name in enumerate(TITLES)}
    charts = []
    for name in sorted(names, key=lambda name: (order.get(name, len(order)), name)):
        having = [kind for kind, rows in kinds.items() if any(is_number(row.get(name)) for row in rows)]
        lines = [_series(kind, name, kinds[kind], colour) for colour, kind in enumerate(having, 1)]
        last = [formats.measure(name, line.y[-1]) for line in lines if line.y]
        charts.append(Chart(name, curve(name, lines), lines, last))
    return charts


def _series(kind: str, name: str, rows: list[Row], colour: int) -> Series:
    rows = [row for row in rows if is_number(row.get(name))]
    low, high = ([row.get(f"{name}_{end}", float("nan")) for row in rows] for end in ("low", "high"))
    banded = any(is_number(value) and value == value for value in low + high)
    y = [float(row[name]) for row in rows]
    return series(kind, [row["step"] for row in rows], y, low if banded else [], high if banded else [], colour)
