"""What a run's evaluations came to, for the command line: a line for each, with its change and a plain sentence."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluation import Comparison, EvaluationResult, Interval, compare_results
from posttrain.reporting.formats import duration, number, percent, points


@dataclass(frozen=True)
class Line:
    """One evaluation. `first`: the earliest one of the same data, which `comparison` sets it against.

    `result` is None where the data have no right answers: then `metrics` have the likelihood of the given responses.
    """

    stage: str
    model: str
    data: str
    metrics: Mapping[str, float]
    result: EvaluationResult | None
    seconds: float
    tokens: int
    first: str | None
    comparison: Comparison | None

    def cells(self) -> dict[str, str]:
        """Column -> cell of a table."""
        cells = {"stage": self.stage, "model": self.model, "data": self.data}
        if self.result is None:
            cells["perplexity"] = number(self.metrics.get("perplexity", math.nan))
        else:
            accuracy = self.result.accuracy
            cells["accuracy"] = f"{percent(accuracy.estimate)} {_span(accuracy, percent)}"
        if self.comparison is not None:
            change = self.comparison.difference.interval
            cells["change"] = f"{points(change.estimate)} {_span(change, points)}"
        return cells | {"tokens": number(self.tokens), "time": duration(self.seconds)}

    def to_json(self) -> dict[str, Any]:
        """The same as numbers: accuracy and change as shares, time in seconds."""
        row: dict[str, Any] = {"stage": self.stage, "model": self.model, "data": self.data}
        shown = ("problems", "samples", "accuracy", "accuracy_low", "accuracy_high", "log_likelihood", "perplexity")
        row |= {key: self.metrics[key] for key in shown if key in self.metrics}
        if self.comparison is not None:
            difference = self.comparison.difference
            ends = difference.interval.to_json()
            row |= {"compared_with": self.first, "change": ends["estimate"]}
            row |= {"change_low": ends["low"], "change_high": ends["high"], "p_value": difference.p_value}
            row |= {"sentence": self.comparison.sentence, "caveats": list(self.comparison.caveats)}
        return row | {"tokens": self.tokens, "seconds": self.seconds}


def summary(folder: Path, stages: Iterable[str]) -> list[Line]:
    """A line for each of `stages` that has results in the run `folder`, in that order."""
    lines: list[Line] = []
    for stage in stages:
        path = folder / "results" / f"{stage}.json"
        row = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "result" in row:  # a continual stage's has none of its own
            lines.append(_line(row, lines))
    return lines


def _line(row: dict[str, Any], earlier: list[Line]) -> Line:
    result = EvaluationResult.from_json(row["result"]) if row["result"] is not None else None
    first = next((line for line in earlier if line.data == row["data"] and _share_problems(line.result, result)), None)
    comparison = None
    if first is not None:
        assert first.result is not None
        assert result is not None
        # The same generator as the report page's: the same interval there and here.
        comparison = compare_results(first.result, result, np.random.default_rng(0), names=(first.stage, row["stage"]))
    return Line(
        stage=row["stage"],
        model=row["model"],
        data=row["data"],
        metrics=row["metrics"],
        result=result,
        seconds=row["seconds"],
        tokens=row["tokens"],
        first=first.stage if first else None,
        comparison=comparison,
    )


def _share_problems(one: EvaluationResult | None, other: EvaluationResult | None) -> bool:
    return one is not None and other is not None and not one.per_problem().keys().isdisjoint(other.per_problem())


def _span(interval: Interval, form: Any) -> str:
    low, high = (form(end).removesuffix("\u202f%") for end in (interval.low, interval.high))
    return f"({low} to {high})"
