"""A comparison on a terminal: what is planned, what came out, and claims."""

from collections.abc import Mapping
from typing import Any

from posttrain.comparison.arms import settings
from posttrain.comparison.budget import budgeted, estimated_seconds, matrix_rate, steps_of
from posttrain.comparison.measures import measure
from posttrain.comparison.result import ComparisonResult, Measure
from posttrain.comparison.runs import Checked
from posttrain.comparison.wording import effect_text, estimate_span, title, value_text
from posttrain.comparison.wording import settings as changes

MAIN = ("accuracy", "kl", "seconds")
"""Metrics that are shown on a terminal; the page and the JSON have all."""


def arm_rows(checked: Checked) -> list[dict[str, Any]]:
    """What each arm is: its recipe, its own changes, its steps (a budget of seconds is not known in steps yet)."""
    spec, rows = checked.spec, []
    for name, recipe in checked.recipes.items():
        found = budgeted(recipe, checked.plans[name], spec.budget) if spec.budget.seconds is None else None
        steps = ", ".join(map(str, steps_of(found, checked.plans[name]).values())) if found else ""
        given = changes(spec.arms[name].set)
        rows.append({"arm": name, "recipe": recipe.name, "changes": given, "steps": steps or "by a pilot"})
        rows[-1]["tuning"] = f"{len(settings(spec.tune))} runs" if spec.tune else ""
    return rows


def estimated_time(checked: Checked, jobs: int) -> float | None:
    """Seconds that all runs may take, very roughly; None where too little is known."""
    spec, total, rate = checked.spec, 0.0, matrix_rate()
    for name, recipe in checked.recipes.items():
        if spec.budget.seconds is None:
            found = estimated_seconds(budgeted(recipe, checked.plans[name], spec.budget), checked.plans[name], rate)
        else:
            found = estimated_seconds(recipe, checked.plans[name], rate) and spec.budget.seconds * 1.5
        if found is None:
            return None
        total += found * (len(spec.seeds) + (len(settings(spec.tune)) if spec.tune else 0))
    return total / jobs


def result_table(result: ComparisonResult) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows: every arm and the start, its accuracies, drift and time with their intervals."""
    shown = [each for each in result.measures if each.metric in MAIN]
    arms = [*result.arms, *([result.base] if result.base is not None else [])]
    rows = []
    for arm in arms:
        row = {"arm": arm.name}
        for each in shown:
            found = result.estimate(each.name, arm.name)
            if found is not None:
                span = estimate_span(each, found)
                row[_column(each)] = value_text(each, found.mean) + (f" ({span})" if span else "")
        rows.append(row)
    return ["arm", *map(_column, shown)], rows


def claim_row(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of a claim that was run."""
    each = measure(*str(claim["metric"]).split(".", 1))
    effect, span = "", ""
    if claim["effect"] is not None:
        effect, span = effect_text(
            each, claim["effect"], claim["interval"], minus=claim["minus"], over=claim.get("over")
        )
    about = claim["of"] if claim["minus"] is None else f"{claim['of']} − {claim['minus']}"
    return {
        "paper": claim["name"],
        "claim": claim["text"],
        "measured": f"{claim['metric']}, {about}",
        "effect": effect,
        "95 % interval": span,
        "seeds": len(claim["seeds"]),
        "verdict": claim["verdict"],
    }


def _column(each: Measure) -> str:
    return title(each) if each.metric == "accuracy" else f"{title(each)}, {each.stage}"
