"""A comparison from its first pilot to its page. Called again, it goes on where it was cut off."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain.comparison import analysis, arms
from posttrain.comparison.arms import Job, job
from posttrain.comparison.budget import budgeted, pace_of, planned, spent_otherwise, steps_of
from posttrain.comparison.claims import decided
from posttrain.comparison.collect import collect
from posttrain.comparison.launching import Launcher
from posttrain.comparison.measures import measure
from posttrain.comparison.page import write_page
from posttrain.comparison.result import (
    ArmResult,
    ArmRun,
    BudgetResult,
    ComparisonResult,
    Failure,
    Trial,
    write_result,
)
from posttrain.comparison.running import run_jobs
from posttrain.comparison.spec import BASE, Comparison
from posttrain.comparison.views import add_views, ran, with_views
from posttrain.errors import UserError, nearest
from posttrain.recipe import Evaluate, Recipe
from posttrain.stages import Plan
from posttrain.terminal import Terminal


@dataclass(frozen=True)
class Checked:
    """A comparison whose arms were all checked without computing: their recipes (without a budget) and plans."""

    spec: Comparison
    root: Path
    recipes: dict[str, Recipe]
    plans: dict[str, dict[str, Plan]]


@dataclass
class _Spent:
    """What has been done so far beside the runs that are compared, and what failed. `left`: arms that can go on."""

    left: list[str]
    paces: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def check(spec: Comparison, root: Path, terminal: Terminal) -> Checked:
    """Check every arm before anything is computed: recipes, data, names of measures. Tokenises (and caches) the data.

    Raises `UserError` that names the arm.
    """
    if spec.tune_on is not None and measure(*spec.tune_on.split(".", 1)).larger_is_better is None:
        raise UserError(f"tune_on '{spec.tune_on}': nothing says which way is better; take an accuracy, say")
    recipes = {name: arms.arm_recipe(spec, name) for name in ran(spec)}
    plans = {}
    for name, recipe in recipes.items():
        if spec.tune_on is not None:
            for setting in arms.settings(spec.tune):
                arms.tuning_recipe(arms.arm_recipe(spec, name, setting), spec.tune_on, name)
        try:
            plans[name] = planned(recipe, root, terminal)
        except UserError as error:
            raise UserError(f"arm '{name}': {error}") from error.__cause__
    check_claims(spec, with_views(spec, recipes))
    if spec.budget.seconds is not None and "batch_size" in spec.tune:
        raise UserError("a budget of seconds is measured once an arm, but tune changes batch_size: use steps or tokens")
    return Checked(spec, root, recipes, plans)


def check_claims(spec: Comparison, recipes: Mapping[str, Recipe]) -> None:
    """Every claim is about a stage that its arms have. Raises `UserError`."""
    for claim in spec.claims:
        stage, _, metric = claim.metric.partition(".")
        for name in claim.named:
            stages = (recipes[name] if name in recipes else next(iter(recipes.values()))).stages
            known = [key for key, fields in stages.items() if fields.kind != "merge"]
            if name == BASE and getattr(stages.get(stage), "kind", "train") != "evaluate":
                raise UserError(f"claim '{claim.text}': {claim.metric} is about training, which '{BASE}' does not do")
            if stage not in (*known, "train"):
                raise UserError(f"claim '{claim.text}': arm '{name}' has no stage '{stage}': {nearest(stage, known)}")
            if metric in ("kl", "entropy") and getattr(stages.get(stage), "reference", BASE) is None:
                raise UserError(f"claim '{claim.text}': {claim.metric} needs 'reference: base' in stage '{stage}'")


def compare(checked: Checked, launcher: Launcher, terminal: Terminal, command: str) -> ComparisonResult:
    """Run what is not finished yet, and write `comparison.json` and the page.

    An arm that fails is left out and listed; raises `Interrupted` after Ctrl-C, with what is done kept, and `UserError`
    where no arm has a finished run.
    """
    spec, spent = checked.spec, _Spent(list(checked.recipes))
    if spec.budget.seconds is not None:
        _pilot(checked, spent, launcher, terminal)
    if spec.tune:
        _tune(checked, spent, launcher, terminal)
    recipes = {name: _final(checked, spent, name) for name in spent.left}
    jobs = [job(checked.root, name, seed, "run", recipes[name]) for seed in spec.seeds for name in recipes]
    start = arms.base_recipe(next(iter(recipes.values()))) if recipes else None
    if start is not None:
        jobs.insert(0, job(checked.root, BASE, spec.seeds[0], "run", start))
    finished = _run(jobs, spent, launcher, terminal)
    result = _result(checked, spent, finished, recipes, launcher.jobs, command)
    write_result(result, checked.root)
    write_page(checked.root)
    return result


def _run(jobs: list[Job], spent: _Spent, launcher: Launcher, terminal: Terminal) -> list[Job]:
    """Run jobs; returns those that are finished."""
    failures = run_jobs(jobs, launcher, terminal)
    spent.failures += failures
    failed = {failure.folder for failure in failures}
    done = [each for each in jobs if str(each.folder) not in failed]
    spent.folders += [each.folder for each in done]
    return done


def _pilot(checked: Checked, spent: _Spent, launcher: Launcher, terminal: Terminal) -> None:
    """A few steps of every arm, as many arms at once as later: what a step takes."""
    seed = checked.spec.seeds[0]
    pilots = [
        job(checked.root, name, seed, "pilot", arms.pilot_recipe(recipe)) for name, recipe in checked.recipes.items()
    ]
    spent.paces = {each.arm: pace_of(each.folder) for each in _run(pilots, spent, launcher, terminal)}
    spent.left = list(spent.paces)
    terminal.event(
        "pilot",
        "pilot: " + ", ".join(f"{arm} {1000 * pace:.0f} ms a step" for arm, pace in spent.paces.items()),
        seconds_per_step=spent.paces,
    )


def _tune(checked: Checked, spent: _Spent, launcher: Launcher, terminal: Terminal) -> None:
    """Every setting of every arm alike, with the first seed and the budget of the runs; the best is chosen."""
    spec = checked.spec
    assert spec.tune_on is not None
    jobs = []
    for name in spent.left:
        for tried in arms.settings(spec.tune):
            recipe = arms.tuning_recipe(_with_budget(checked, spent, name, tried), spec.tune_on, name)
            jobs.append(job(checked.root, name, spec.seeds[0], "tune", recipe, tried))
    done = _run(jobs, spent, launcher, terminal)
    collected, _ = collect({str(each.folder): {each.seed: each.folder} for each in done})
    larger = measure(*spec.tune_on.split(".", 1)).larger_is_better
    for name in spent.left:
        found = [(each, collected[str(each.folder)][0].values) for each in done if each.arm == name]
        values = {index: values[spec.tune_on] for index, (_, values) in enumerate(found) if spec.tune_on in values}
        if found and not values:
            raise UserError(f"tune_on '{spec.tune_on}' is not measured; measured: {', '.join(sorted(found[0][1]))}")
        if not values:
            continue
        best = (max if larger else min)(values, key=lambda index: values[index])
        spent.chosen[name] = dict(found[best][0].set)
        spent.trials += [
            Trial(name, dict(found[index][0].set), found[index][0].seed, value, index == best)
            for index, value in values.items()
        ]
    spent.left = list(spent.chosen)
    for name, chosen in spent.chosen.items():
        told = ", ".join(f"{key}={value}" for key, value in chosen.items())
        terminal.event("tuned", f"tuned: {name} {told}", arm=name, chosen=chosen)


def _with_budget(checked: Checked, spent: _Spent, name: str, setting: Mapping[str, Any]) -> Recipe:
    recipe = arms.arm_recipe(checked.spec, name, setting)
    plans = planned(recipe, checked.root, Terminal(quiet=True)) if setting else checked.plans[name]
    return budgeted(recipe, plans, checked.spec.budget, spent.paces.get(name))


def _final(checked: Checked, spent: _Spent, name: str) -> Recipe:
    """The recipe that is compared: tuned, with the budget, and without the evaluation that it was tuned on."""
    recipe = _with_budget(checked, spent, name, spent.chosen.get(name, {}))
    tuned_on = (checked.spec.tune_on or "").partition(".")[0]
    stage = recipe.stages.get(tuned_on)
    return arms.without(recipe, [tuned_on]) if stage is not None and stage.kind == "evaluate" else recipe


def _result(
    checked: Checked, spent: _Spent, finished: Iterable[Job], recipes: Mapping[str, Recipe], jobs: int, command: str
) -> ComparisonResult:
    spec = checked.spec
    runs, problems = collect(_folders(finished, spent))
    found = [
        ArmResult(name, recipe.name, recipe.description, _changes(spec, name), spent.chosen.get(name, {}),
                  steps_of(recipe, checked.plans[name]), runs[name])
        for name, recipe in recipes.items() if name in runs
    ]  # fmt: skip
    found = add_views(spec, found, problems)
    base = ArmResult(BASE, found[0].recipe, "what all start from", {}, {}, {}, runs[BASE]) if BASE in runs else None
    everyone = [*found, base] if base is not None else found
    measures = analysis.measures_of(found, [claim.metric for claim in spec.claims])
    contrasts = analysis.contrasts(found, base, measures)
    manifests = [json.loads((folder / "manifest.json").read_bytes()) for folder in spent.folders]
    return ComparisonResult(
        name=spec.name,
        description=spec.description,
        paper=spec.paper,
        seeds=list(spec.seeds),
        budget=_budget(spec, spent),
        measures=measures,
        problems=problems,
        arms=found,
        base=base,
        estimates=analysis.estimates(everyone, measures),
        contrasts=contrasts,
        sentences=analysis.sentences(contrasts, measures),
        claims=decided(spec.claims, {arm.name: arm for arm in everyone}),
        tune_on=spec.tune_on,
        trials=spent.trials,
        failures=spent.failures,
        notes=_notes(checked, found, recipes, manifests),
        spec=spec.model_dump(mode="json"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(sum(stage["seconds"] for content in manifests for stage in content["stages"].values()), 1),
        jobs=jobs,
        level=analysis.LEVEL,
        command=command,
        versions=manifests[0]["versions"],
        machine=manifests[0]["machine"],
        git_commit=manifests[0]["git_commit"],
    )


def _folders(finished: Iterable[Job], spent: _Spent) -> dict[str, dict[int, Path]]:
    """Arm -> seed -> run folder. Raises `UserError` where no arm has a finished run."""
    folders: dict[str, dict[int, Path]] = {}
    for each in finished:
        folders.setdefault(each.arm, {})[each.seed] = each.folder
    if not set(folders) - {BASE}:
        reasons = "\n".join(f"{failure.arm} seed {failure.seed}: {failure.reason}" for failure in spent.failures)
        raise UserError(f"no arm has a finished run:\n{reasons}")
    return folders


def _changes(spec: Comparison, name: str) -> dict[str, Any]:
    return {**spec.set, **spec.arms[name].set}


def _budget(spec: Comparison, spent: _Spent) -> BudgetResult:
    if spec.budget.steps is not None:
        return BudgetResult("steps", spec.budget.steps)
    if spec.budget.tokens is not None:
        return BudgetResult("tokens", spec.budget.tokens)
    if spec.budget.seconds is not None:
        return BudgetResult("seconds", spec.budget.seconds, spent.paces)
    return BudgetResult("recipe", None)


def _notes(
    checked: Checked, found: list[ArmResult], recipes: Mapping[str, Recipe], manifests: list[dict[str, Any]]
) -> list[str]:
    """What a reader has to know before trusting the numbers."""
    spec, notes = checked.spec, []
    missing = [name for name in spec.arms if name not in {arm.name for arm in found}]
    notes += [f"arm '{name}' has no finished run and is left out" for name in missing]
    for arm in found:
        if gone := [str(seed) for seed in spec.seeds if seed not in {run.seed for run in arm.runs}]:
            notes.append(
                f"arm '{arm.name}' lacks seed {', '.join(gone)}: differences are over the seeds that both have"
            )
    if len(spec.seeds) == 1:
        notes.append("one seed: intervals are over problems alone, and say nothing of what another seed would give")
    starts = {name: recipe.model.path for name, recipe in recipes.items()}
    if len(set(starts.values())) > 1:
        notes.append(f"the arms start from different models; the start shown is {next(iter(starts.values()))}")
    asked = {name: _asked(recipe) for name, recipe in recipes.items()}
    others = [name for name, questions in asked.items() if questions != next(iter(asked.values()))]
    if others:
        notes.append(f"the start was asked what arm '{next(iter(asked))}' was; others were: {', '.join(others)}")
    if len({json.dumps([content["versions"], content["machine"]]) for content in manifests}) > 1:
        notes.append("the runs were made with different versions or on different machines: seconds may not compare")
    name = "train.input_tokens" if spec.budget.tokens else "train.seconds"
    return notes + spent_otherwise(spec.budget, {arm.name: _spent_on(arm.runs, name) for arm in found})


def _asked(recipe: Recipe) -> dict[str, Any]:
    """Evaluate stage -> its data."""
    return {name: recipe.data.get(stage.data) for name, stage in recipe.stages.items() if isinstance(stage, Evaluate)}


def _spent_on(runs: Iterable[ArmRun], name: str) -> list[float]:
    return [run.values[name] for run in runs if name in run.values]
