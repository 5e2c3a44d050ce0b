"""What the page of a comparison draws: differences, costs and learning curves, made from the result."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from posttrain.comparison.figures import Point, Whisker, axis, plane, shortened, span, whisker
from posttrain.comparison.result import ComparisonResult, Contrast, Family, Measure
from posttrain.comparison.wording import contrast_span, difference_text, ends, place, title, unit
from posttrain.reporting.formats import measure as metric_text
from posttrain.reporting.plots import Series, curve, series
from posttrain.reporting.report import TITLES, Chart

COLOURS = 8
"""Arms beyond these many share colours; every plot names its arms besides."""

ALONG = {"recipe": "step", "steps": "step", "tokens": "input_tokens", "seconds": "seconds"}
"""Kind of budget -> what curves are drawn over: that which all arms had the same of."""


@dataclass(frozen=True)
class Row:
    """An arm's line in a plot of differences."""

    arm: str
    colour: int
    svg: Markup
    text: str
    span: str
    significant: bool


@dataclass(frozen=True)
class Panel:
    """A plot of one measure. `place`: its stage, where the title does not tell; `hint`: which side is better."""

    title: str
    place: str
    hint: str
    rows: list[Row]
    axis: Markup


def colours(result: ComparisonResult) -> dict[str, int]:
    """Arm -> its colour from 1 to `COLOURS`; the start has 0, which is grey."""
    return {"base": 0} | {arm.name: index % COLOURS + 1 for index, arm in enumerate(result.arms)}


def differences(result: ComparisonResult, measures: Iterable[Measure], family: Family) -> list[Panel]:
    """A dot-and-whisker plot of each measure in which some arm differs at all."""
    found = [(each, result.contrasts_of(each.name, family)) for each in measures]
    return [
        _panel(each, place(each, result.measures), some, colours(result))
        for each, some in found
        if any(one.estimate for one in some)
    ]


def planes(result: ComparisonResult, quality: Iterable[Measure], across: Measure) -> list[tuple[str, Markup]]:
    """(title, plot of quality against `across`) of each measure of quality that two arms or more have."""
    colour, plots = colours(result), []
    for each in quality:
        points = []
        for arm in result.arms:
            good, found = result.estimate(each.name, arm.name), result.estimate(across.name, arm.name)
            if good is not None and found is not None:
                low, high = ends(each, good) or (good.mean, good.mean)
                points.append(Point(arm.name, colour[arm.name], found.mean, good.mean, low, high))
        start = result.estimate(each.name, "base")
        if len(points) > 1:
            plot = plane(points, across, each, start.mean if start else None)
            plots.append((f"{title(each)} against {title(across).lower()}", plot))
    return plots


def charts(result: ComparisonResult) -> tuple[list[Chart], list[Chart]]:
    """Learning curves that are always in sight, and the others: for each what was logged, a line for each arm."""
    along = ALONG[result.budget.kind]
    stages = dict.fromkeys(stage for arm in result.arms for run in arm.runs for stage in (*run.curves, *run.watched))
    main: list[Chart] = []
    rest: list[Chart] = []
    for stage in stages:
        for watched in (False, True):
            logged = {arm.name: [(run.watched if watched else run.curves).get(stage, {}) for run in arm.runs]
                      for arm in result.arms}  # fmt: skip
            columns = dict.fromkeys(name for runs in logged.values() for run in runs for name in run)
            for name in columns:
                if name not in {"step", "tokens", "input_tokens", "seconds"}:
                    where = main if watched or name == "loss" else rest
                    where.append(_chart(result, logged, name, along, f"{stage}, " if len(stages) > 1 else "", watched))
    return [chart for chart in main if chart.svg], [chart for chart in rest if chart.svg]


def _panel(each: Measure, stage: str, contrasts: Sequence[Contrast], colour: Mapping[str, int]) -> Panel:
    drawn = [
        Whisker(
            colour.get(found.arm, 1),
            found.estimate,
            found.estimate if found.low is None else found.low,
            found.estimate if found.high is None else found.high,
            found.significant,
        )
        for found in contrasts
    ]
    scale = span(drawn)
    rows = []
    for found, one in zip(contrasts, drawn, strict=True):
        text, ends = difference_text(each, found.estimate) + unit(each), contrast_span(each, found)
        read = f"{found.arm} minus {found.minus}: {text}" + (f", interval {ends}" if ends else "")
        rows.append(Row(found.arm, one.colour, whisker(one, scale, read), text, ends, found.significant))
    better = {True: "right is better", False: "left is better", None: ""}[each.larger_is_better]
    return Panel(title(each), stage, better, rows, axis(scale, lambda value: difference_text(each, value)))


def _chart(
    result: ComparisonResult,
    logged: Mapping[str, Sequence[Mapping[str, Sequence[float | None]]]],
    name: str,
    along: str,
    stage: str,
    watched: bool,
) -> Chart:
    held = [column for runs in logged.values() for column in runs if name in column]
    along = along if all(along in column for column in held) else "step"
    colour = colours(result)
    found = [_over_seeds(arm, runs, name, along, colour[arm]) for arm, runs in logged.items()]
    lines = [line for line in found if line.y]
    heading = stage + TITLES.get(name, name.replace("_", " ").capitalize()) + (", evaluated" if watched else "")
    last = [metric_text(name, line.y[-1]) for line in lines]
    return Chart(name, curve(name, lines, along.replace("_", " ")), lines, last, heading)


def _over_seeds(
    arm: str, runs: Sequence[Mapping[str, Sequence[float | None]]], name: str, along: str, colour: int
) -> Series:
    """Mean over seeds with their range as a band, where all seeds have a value: up to the end of the shortest."""
    tables = []
    for run in runs:
        pairs = zip(run.get(along, ()), run.get(name, ()), strict=False)
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        if known:
            tables.append(np.array(known, dtype=float).T)
    if not tables:
        return Series(shortened(arm), [], [], colour=colour)
    grid = min((table[0] for table in tables), key=lambda steps: float(steps[-1]))
    values = np.stack([np.interp(grid, *table) for table in tables])
    low, high = (values.min(0).tolist(), values.max(0).tolist()) if len(tables) > 1 else ([], [])
    return series(shortened(arm), grid.tolist(), values.mean(0).tolist(), low, high, colour)
