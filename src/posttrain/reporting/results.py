"""The summary table: what each evaluation measured, and how it differs from the first one on the same problems."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.evaluation.statistics import Difference, paired_shares
from posttrain.reporting.formats import duration, is_number, is_share, measure, number, percent, points
from posttrain.reporting.reading import Row, Run

MAIN = {"mean_length": "Length, tokens", "truncated": "Cut off", "format_validity": "Valid form"}
"""Metrics that the table always has beside accuracy, and what it calls them."""


@dataclass(frozen=True)
class Estimate:
    """A measured number with its interval (equal to the number where none was given) and the interval's level."""

    name: str
    value: float
    low: float
    high: float
    level: float | None

    @property
    def text(self) -> str:
        """The number alone: `64.0 %`."""
        return measure(self.name, self.value)

    @property
    def interval(self) -> str:
        """The interval alone, its unit left to `text`: `57.1 to 70.2`; empty where there is none."""
        if self.low == self.high:
            return ""
        return " to ".join(measure(self.name, end).removesuffix("\u202f%") for end in (self.low, self.high))


@dataclass(frozen=True)
class Evaluated:
    """One line of the table. `metrics`: name -> estimate; `base`: the accuracy that it is compared with."""

    stage: str
    status: str
    model: str
    data: str
    problems: int
    metrics: dict[str, Estimate]
    seconds: str
    tokens: str
    base: Estimate | None
    difference: Difference | None

    @property
    def paired(self) -> list[str]:
        """How sure the difference is: `+22.2 to +40.8` and `p < 0.001, 200 pairs`."""
        if self.difference is None:
            return []
        interval, p_value = self.difference.interval, self.difference.p_value
        known = math.isfinite(interval.low) and math.isfinite(interval.high)
        sure = [f"{points(interval.low)} to {points(interval.high)}"] if known else []
        tested = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
        return [*sure, f"{tested}, {number(self.difference.problems)} pairs"]

    @property
    def accuracy(self) -> Estimate | None:
        """The metric that is drawn."""
        return self.metrics.get("accuracy")


def evaluations(run: Run) -> dict[str, list[Evaluated]]:
    """Data -> a line for each evaluate stage on it that has begun, in the order of the stages."""
    begun = [name for name, stage in run.stages.items() if stage.get("status") != "waiting" or name in run.results]
    names = [name for name in begun if run.stages[name].get("kind") == "evaluate"]
    names += [name for name, result in run.results.items() if name not in names and "matrix" not in result]
    tables: dict[str, list[Evaluated]] = {}
    for index, name in enumerate(names):
        line = _evaluated(run, name, names[:index])
        tables.setdefault(line.data, []).append(line)
    return tables


@dataclass(frozen=True)
class TaskSequence:
    """A continual stage's matrix as text: `rows` are the stages, each with its accuracies on the `tasks` so far."""

    stage: str
    tasks: list[str]
    rows: list[tuple[str, list[str]]]
    metrics: dict[str, str]


def task_sequences(run: Run) -> list[TaskSequence]:
    """What continual stages have found."""
    return [_sequence(name, result) for name, result in run.results.items() if "matrix" in result]


def _sequence(name: str, result: Row) -> TaskSequence:
    width = len(result["tasks"])
    rows = [
        (stage, [percent(value) for value in row] + [""] * (width - len(row)))
        for stage, row in zip(result["stages"], result["matrix"], strict=True)
    ]
    metrics = {
        key.replace("_", " "): percent(value) if is_share(key) else f"{points(value)} points"
        for key, value in result["metrics"].items()
    }
    return TaskSequence(name, result["tasks"], rows, metrics)


def columns(lines: list[Evaluated]) -> tuple[list[str], list[str]]:
    """Names of the metrics beside accuracy: those of the main table, and all the others.

    The main table has pass@k and its kin for the largest k over 1, what tells a format that was not learnt from a
    wrong answer, and errors where there are any.
    """
    names = list(dict.fromkeys(name for line in lines for name in line.metrics if name != "accuracy"))
    largest: dict[str, int] = {}
    for kind, _, k in (name.partition("@") for name in names):
        if k.isdecimal():
            largest[kind] = max(largest.get(kind, 2), int(k))
    main = [name for name in names if name in MAIN or name in {f"{kind}@{k}" for kind, k in largest.items()}]
    if any(line.accuracy is None for line in lines) and "perplexity" in names:
        main.append("perplexity")
    if any(line.metrics["errors"].value for line in lines if "errors" in line.metrics):
        main.append("errors")
    return main, [name for name in names if name not in main]


def _evaluated(run: Run, name: str, earlier: list[str]) -> Evaluated:
    stage, result = run.stages.get(name, {}), run.results.get(name, {})
    metrics = estimates(result)
    first = next((run.results[other] for other in earlier if _comparable(run.results.get(other), result)), None)
    seconds = result.get("seconds", stage.get("seconds"))
    tokens = result.get("tokens")
    return Evaluated(
        stage=name,
        status=str(stage.get("status", "finished")),
        model=_plain(result.get("model", "")),
        data=_plain(result.get("data", "")),
        problems=len(_values(result)) or int(metrics["samples"].value if "samples" in metrics else 0),
        metrics=metrics,
        seconds=duration(seconds) if is_number(seconds) and result else "",
        tokens=number(tokens) if is_number(tokens) else "",
        base=estimates(first).get("accuracy") if first else None,
        difference=_difference(first, result) if first else None,
    )


def estimates(result: Row) -> dict[str, Estimate]:
    """Metrics of a results file: `{"estimate", "low", "high", "level"}` each, or numbers beside `_low` and `_high`."""
    metrics = result["metrics"] if isinstance(result.get("metrics"), dict) else {}
    ends = {f"{name}_{end}" for name in metrics for end in ("low", "high")}
    found = {}
    for name, given in metrics.items():
        flat = {"estimate": given, "low": metrics.get(f"{name}_low"), "high": metrics.get(f"{name}_high")}
        row = given if isinstance(given, dict) else flat | {"level": result.get("level")}
        value, level = row.get("estimate"), row.get("level")
        if is_number(value) and name not in ends:
            low, high = (row[end] if is_number(row.get(end)) else value for end in ("low", "high"))
            found[str(name)] = Estimate(str(name), float(value), low, high, level if is_number(level) else None)
    return found


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return "" if value is None else str(value)


def _comparable(first: Row | None, second: Row) -> bool:
    """Are both of the same data, with problems in common?"""
    if first is None or first.get("data") != second.get("data"):
        return False
    return bool(_values(first).keys() & _values(second).keys())


def _values(result: Row) -> dict[str, float]:
    """Problem -> its mean value; problems without one are left out."""
    problems = result.get("problems")
    if isinstance(problems, list):
        problems = {row.get("sample_id"): row.get("value") for row in problems if isinstance(row, dict)}
    given = problems.items() if isinstance(problems, dict) else ()
    return {str(name): float(value) for name, value in given if is_number(value) and math.isfinite(value)}


def _difference(first: Row, second: Row) -> Difference:
    before, after = _values(first), _values(second)
    shared = [name for name in before if name in after]
    rng = np.random.default_rng(0)
    return paired_shares([before[name] for name in shared], [after[name] for name in shared], rng)
