"""`write_page`: one self-contained HTML page from a comparison's `comparison.json`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.comparison.panels import charts, colours, differences, planes
from posttrain.comparison.result import ArmResult, ComparisonResult, Contrast, Measure, Trial, read_result
from posttrain.comparison.wording import (
    budget_text,
    contrast_span,
    difference_text,
    estimate_span,
    p_text,
    place,
    settings,
    title,
    unit,
    value_text,
)
from posttrain.reporting.formats import number
from posttrain.reporting.pages import environment, render, write

FAMILIES = {"first": "each arm minus the first", "pairs": "all pairs of arms", "base": "each arm minus the start"}


TOLD = 3
"""Arms that a finding names; the plots have them all."""


@dataclass(frozen=True)
class Cell:
    """A number of the table. `mark`: ▲ or ▼ where it differs significantly from the first arm's; `tone`: its class."""

    text: str
    interval: str
    mark: str
    tone: str
    seeds: str


@dataclass(frozen=True)
class Line:
    """An arm of the table; a cell is None where the arm has no such number."""

    name: str
    colour: int
    recipe: str
    tuned: dict[str, Any]
    runs: int
    cells: list[Cell | None]


def write_page(folder: Path) -> Path:
    """Write `folder/comparison.html` and return its path. The page loads nothing: styles and plots are inside.

    Raises `UserError` where `folder` holds no readable `comparison.json`. Arms and numbers that are not there are left
    out; runs that failed are named with their reason.
    """
    page = render("comparison.html", _content(read_result(Path(folder))), "posttrain.comparison")
    return write(page, Path(folder) / "comparison.html")


def _content(result: ComparisonResult) -> dict[str, Any]:
    """Everything that the template names."""
    main = _columns(result)
    quality = _quality(result)
    arms = ([result.base] if result.base and result.base.runs else []) + [arm for arm in result.arms if arm.runs]
    drawn = [each for each in main if each.unit != "tokens"]  # mostly the same for all, by the budget
    others = [each for each in result.measures if each not in drawn]
    curves, more_curves = charts(result)
    return {
        "name": result.name,
        "result": result,
        "first": result.arms[0].name if result.arms else "",
        "budget": budget_text(result.budget),
        "findings": _findings(result, quality),
        "columns": [(title(each), place(each, result.measures)) for each in main],
        "tuned": list(dict.fromkeys(key for arm in result.arms for key in arm.tuned)),
        "lines": [_line(result, arm, main) for arm in arms],
        "every": [(each, [_cell(result, arm, each) for arm in arms]) for each in result.measures],
        "differences": differences(result, drawn, "first"),
        "more_differences": differences(result, others, "first"),
        "from_start": differences(result, quality, "base"),
        "plots": [plot for across in _across(result) for plot in planes(result, quality, across)],
        "curves": curves,
        "more_curves": more_curves,
        "legend": [(name, colour) for name, colour in colours(result).items() if colour],
        "tables": [(told, rows) for family, told in FAMILIES.items() if (rows := _contrasts(result, family))],
        "tuning": _tuning(result.trials),
        "command": result.command,
        "environment": environment(result.machine, git_commit=result.git_commit, runs_side_by_side=result.jobs),
        "versions": result.versions,
        "spec": yaml.safe_dump(result.spec, sort_keys=False, allow_unicode=True, width=100) if result.spec else "",
    }


def _quality(result: ComparisonResult) -> list[Measure]:
    """Accuracy wherever it was measured, else what the demonstrations are likely to."""
    for metric in ("accuracy", "log_likelihood"):
        if found := [each for each in result.measures if each.metric == metric]:
            return found
    return []


def _across(result: ComparisonResult) -> list[Measure]:
    """What quality is drawn against: time, tokens where the arms were not given the same number of them, and imitation
    where some arms imitate more than others."""
    found = []
    for each in result.measures:
        means = [one.mean for one in result.estimates if one.metric == each.name and one.arm != "base"]
        tokens = each.metric == "input_tokens" and means and max(means) > 1.02 * min(means)
        if each.metric in ("seconds", "imitated") or tokens:
            found.append(each)
    return found


def _columns(result: ComparisonResult) -> list[Measure]:
    """Measures of the main table: quality, drift and entropy where they were measured first, what it cost."""
    named: dict[str, list[Measure]] = {}
    for each in result.measures:
        named.setdefault(each.metric, []).append(each)
    drift = [each for metric in ("kl", "entropy") for each in named.get(metric, ())[:1]]
    tokens = named.get("input_tokens") or named.get("trained_tokens") or []
    return [*_quality(result), *drift, *named.get("seconds", ()), *tokens]


def _line(result: ComparisonResult, arm: ArmResult, measures: Iterable[Measure]) -> Line:
    shared = [arm.set.items() for arm in result.arms] if len(result.arms) > 1 else []
    own = {key: value for key, value in arm.set.items() if not shared or any((key, value) not in s for s in shared)}
    told = "the start" if arm is result.base else " ".join(filter(None, (arm.recipe, settings(own))))
    cells = [_cell(result, arm, each) for each in measures]
    return Line(arm.name, colours(result).get(arm.name, 0), told, arm.tuned, len(arm.runs), cells)


def _cell(result: ComparisonResult, arm: ArmResult, each: Measure) -> Cell | None:
    found = result.estimate(each.name, arm.name)
    if found is None:
        return None
    against = [one for one in result.contrasts_of(each.name) if one.arm == arm.name and one.significant]
    mark = ("▲" if against[0].estimate > 0 else "▼") if against else ""
    tone = _tone(each, against[0].estimate) if against else ""
    seeds = [value_text(each, run.values[each.name]) for run in arm.runs if each.name in run.values]
    return Cell(value_text(each, found.mean), estimate_span(each, found), mark, tone, " · ".join(seeds))


def _tone(each: Measure, estimate: float) -> str:
    """The class of a significant difference: good, bad, or only different."""
    if each.larger_is_better is None:
        return "running"
    return "finished" if (estimate > 0) == each.larger_is_better else "failed"


def _findings(result: ComparisonResult, quality: Iterable[Measure]) -> list[tuple[str, list[str]]]:
    """(what was measured, sentences) for each measure of quality: which arms differ from the first, from the start."""
    found = []
    for each in quality:
        families = [result.contrasts_of(each.name, family) for family in ("first", "base")]
        if told := [_finding(each, contrasts) for contrasts in families if contrasts]:
            found.append((title(each), told))
    return found


def _finding(each: Measure, contrasts: list[Contrast]) -> str:
    """The arms that differ significantly, the largest differences first; the others are named where they are few."""
    minus = "the start" if contrasts[0].family == "base" else contrasts[0].minus
    sure = sorted((one for one in contrasts if one.significant), key=lambda one: -abs(one.estimate))
    told = [
        f"{one.arm} {difference_text(each, one.estimate)}{unit(each)} ({contrast_span(each, one)})"
        for one in sure[:TOLD]
    ]
    if len(sure) > TOLD:
        told.append(f"{len(sure) - TOLD} more significant")
    unsure = [one.arm for one in contrasts if not one.significant]
    rest = ", ".join(unsure) if len(unsure) <= TOLD else f"{len(unsure)} arms"
    if all(one.low is None for one in contrasts):
        return f"One seed: nothing is known of how sure the differences from {minus} are."
    if not told:
        return f"No significant difference from {minus}: {rest}."
    return f"Against {minus}: {', '.join(told)}{f'; no significant difference: {rest}' if unsure else ''}."


def _contrasts(result: ComparisonResult, family: str) -> list[dict[str, Any]]:
    return [
        {
            "measure": measure.label,
            "arm": found.arm,
            "minus": found.minus,
            "difference": difference_text(measure, found.estimate) + unit(measure),
            "interval": contrast_span(measure, found),
            "p": p_text(found.p_value),
            "adjusted": p_text(found.p_adjusted),
            "effect": "" if found.effect is None else number(round(found.effect, 2)),
            "problems": number(found.problems) if found.problems else "",
            "seeds": found.seeds,
            "test": found.test,
            "tone": _tone(measure, found.estimate) if found.significant else "",
        }
        for measure in result.measures
        for found in result.contrasts
        if (found.metric, found.family) == (measure.name, family)
    ]


def _tuning(trials: Iterable[Trial]) -> tuple[list[str], dict[str, dict[str, tuple[str, bool]]]]:
    """The settings tried, and arm -> setting -> (mean over seeds, whether it was chosen)."""
    tried: dict[str, dict[str, list[Trial]]] = {}
    for trial in trials:
        tried.setdefault(trial.arm, {}).setdefault(settings(trial.set), []).append(trial)
    columns = dict.fromkeys(setting for found in tried.values() for setting in found)
    return list(columns), {
        arm: {
            setting: (number(sum(one.value for one in each) / len(each)), any(one.chosen for one in each))
            for setting, each in found.items()
        }
        for arm, found in tried.items()
    }
