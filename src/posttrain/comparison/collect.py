"""From finished run folders to the numbers of an arm's runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.comparison.result import ArmRun
from posttrain.evaluation import saturation
from posttrain.reporting.formats import is_number
from posttrain.reporting.reading import Row, Run, read_run

POINTS = 60
"""Points of a learning curve: more cannot be told apart on a page."""

_SUMS = ("tokens", "input_tokens")
_NO_CURVE = ("stage", "kind", "step", "seconds", "tokens_per_second", *_SUMS)

Column = list[float | None]


def collect(folders: Mapping[str, Mapping[int, Path]]) -> tuple[dict[str, list[ArmRun]], dict[str, list[str]]]:
    """Arm -> its runs by seed, and evaluate stage -> ids of its problems, of arm -> seed -> run folder."""
    read = {arm: {seed: read_run(folder) for seed, folder in seeds.items()} for arm, seeds in folders.items()}
    problems: dict[str, dict[str, None]] = {}
    for runs in read.values():
        for run in runs.values():
            for stage, result in run.results.items():
                problems.setdefault(stage, {}).update(dict.fromkeys(result.get("problems") or {}))
    order = {stage: list(ids) for stage, ids in problems.items() if ids}
    return {arm: [_arm_run(seed, run, order) for seed, run in runs.items()] for arm, runs in read.items()}, order


def _arm_run(seed: int, run: Run, problems: Mapping[str, list[str]]) -> ArmRun:
    trained = [name for name, stage in run.stages.items() if stage.get("kind") == "train"]
    shares = {
        stage: [result["problems"].get(problem) for problem in problems[stage]]
        for stage, result in run.results.items()
        if result.get("problems")
    }
    memory = [run.stages[stage].get("summary", {}).get("peak_memory") for stage in trained]
    return ArmRun(
        seed=seed,
        folder=str(run.directory),
        seconds=round(sum(stage.get("seconds", 0.0) for stage in run.stages.values()), 3),
        values=_values(run, trained),
        shares=shares,
        curves={stage: _curve(rows) for stage in trained if (rows := _rows(run, stage, "train"))},
        watched={stage: _columns(rows) for stage in trained if (rows := _rows(run, stage, "evaluation"))},
        peak_memory=max((found for found in memory if found is not None), default=None),
    )


def _values(run: Run, trained: Sequence[str]) -> dict[str, float]:
    """STAGE.METRIC -> number. `train` stands for all train stages together where none is called so."""
    values = {
        f"{stage}.{name}": float(number)
        for stage, result in run.results.items()
        for name, number in result.get("metrics", {}).items()
        if is_number(number) and math.isfinite(number)
    }
    values |= {
        f"{stage}.{name}": float(number)
        for stage, done in run.stages.items()
        if done.get("kind") in ("generate", "curate")
        for name, number in done.get("summary", {}).items()
        if is_number(number)
    }
    spent = {stage: _spent(run, stage) for stage in trained}
    for stage, numbers in spent.items():
        values |= {f"{stage}.{name}": number for name, number in numbers.items()}
    if trained and "train" not in trained:
        values |= {f"train.{name}": number for name, number in spent[trained[-1]].items()}
        for name in ("seconds", "steps", "trained_tokens", "input_tokens"):
            values[f"train.{name}"] = sum(numbers.get(name, 0.0) for numbers in spent.values())
        shares = [numbers.get("imitated", 0.0) * numbers.get("steps", 0.0) for numbers in spent.values()]
        values["train.imitated"] = sum(shares) / max(1.0, values["train.steps"])
    return values


def _spent(run: Run, stage: str) -> dict[str, float]:
    """What a train stage came to: its summary, its input tokens, `log.NAME` over the last tenth of its steps, and when
    its reward was saturated."""
    rows = _rows(run, stage, "train")
    numbers = {
        name: float(number) for name, number in run.stages[stage].get("summary", {}).items() if is_number(number)
    }
    if rows:
        steps = max(rows[-1]["step"], int(numbers.get("steps", 0)))  # the last ones may not have been logged
        numbers.setdefault("input_tokens", _cumulated([*rows, {**rows[-1], "step": steps}], "input_tokens")[-1])
        last = [row for row in rows if row["step"] > 0.9 * rows[-1]["step"]]
        for name in dict.fromkeys(name for row in last for name in row):  # a round's stand in the row of its first step
            found = [row[name] for row in last if is_number(row.get(name))]
            if found and name != "step":
                numbers[f"log.{name}"] = sum(found) / len(found)
    if (saturated := saturation(rows, _rows(run, stage, "evaluation"))) is not None:
        numbers["saturation"] = saturated.step
        if saturated.before is not None and saturated.after is not None:
            numbers |= {"gain_before_saturation": saturated.before, "gain_after_saturation": saturated.after}
            numbers["gain"] = saturated.before + saturated.after
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def _rows(run: Run, stage: str, kind: str) -> list[Row]:
    return run.metrics.get(stage, {}).get(kind, [])


def _cumulated(rows: Sequence[Row], name: str) -> list[float]:
    """Sums of a number per step, up to each row; a row stands for the steps since the one before it."""
    sums, total, before = [], 0.0, 0
    for row in rows:
        total += float(row.get(name, 0.0)) * (row["step"] - before)
        before = row["step"]
        sums.append(total)
    return sums


def _curve(rows: Sequence[Row]) -> dict[str, Column]:
    """Columns of a train stage's rows, thinned: values are means of a stretch, steps and sums what it ends with."""
    size = math.ceil(len(rows) / POINTS)
    ends = [min(start + size, len(rows)) for start in range(0, len(rows), size)]
    sums = {"step": [row["step"] for row in rows], "seconds": [row.get("seconds", 0.0) for row in rows]}
    sums |= {name: _cumulated(rows, name) for name in _SUMS}
    columns: dict[str, Column] = {name: [_short(values[end - 1]) for end in ends] for name, values in sums.items()}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name not in _NO_CURVE and not name.startswith("time/"):
            stretches = [[row.get(name) for row in rows[max(0, end - size) : end]] for end in ends]
            columns[name] = [_mean(values) for values in stretches]
    return {name: column for name, column in columns.items() if any(value is not None for value in column)}


def _columns(rows: Sequence[Row]) -> dict[str, Column]:
    names = dict.fromkeys(name for row in rows for name in row if name not in ("stage", "kind"))
    columns: dict[str, Column] = {name: [_mean([row.get(name)]) for row in rows] for name in names}
    return {name: column for name, column in columns.items() if any(value is not None for value in column)}


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [float(value) for value in values if is_number(value) and math.isfinite(value)]
    return _short(sum(numbers) / len(numbers)) if numbers else None


def _short(number: float) -> float:
    """Five digits behind the first: a curve needs no more, and its file stays small. Whole numbers stay whole."""
    return number if isinstance(number, int) or float(number).is_integer() else float(f"{number:.6g}")
