"""Arms that are looked at in other stages: stages of one run, compared with one another as if they were arms."""

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import replace

from posttrain.comparison.result import ArmResult, ArmRun
from posttrain.comparison.spec import Comparison
from posttrain.errors import UserError, nearest
from posttrain.recipe import Recipe


def ran(spec: Comparison) -> list[str]:
    """The arms that are run: those that are no views of another."""
    return [name for name, arm in spec.arms.items() if arm.view_of is None]


def with_views(spec: Comparison, recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The recipes of all arms: a view has the stages of its arm by the names that it gives them, and no others.

    Raises `UserError` for a view of a stage that its arm does not have.
    """
    found = dict(recipes)
    for name, arm in spec.arms.items():
        if arm.view_of is not None and arm.view_of in recipes:
            seen = recipes[arm.view_of]
            for stage in arm.stages.values():
                if stage not in seen.stages:
                    raise UserError(f"arm '{name}' looks at stage '{stage}': {nearest(stage, seen.stages)}")
            stages = {own: seen.stages[stage] for own, stage in arm.stages.items()}
            found[name] = seen.model_copy(update={"stages": stages})
    return found


def add_views(spec: Comparison, arms: List[ArmResult], problems: dict[str, list[str]]) -> list[ArmResult]:
    """All arms in the order of `spec`, with the views of those that have runs.

    Where a view gives a stage the name of another, its shares by problem are kept if both were asked the same ones;
    `problems` (stage -> ids) gets the names that only views have.
    """
    found = {arm.name: arm for arm in arms}
    for name, arm in spec.arms.items():
        if arm.view_of is None or arm.view_of not in found:
            continue
        for own, stage in arm.stages.items():
            if stage in problems:
                problems.setdefault(own, problems[stage])
        seen = found[arm.view_of]
        runs = [_viewed(run, arm.stages, problems) for run in seen.runs]
        found[name] = replace(seen, name=name, set={}, steps={}, runs=runs)
    return [found[name] for name in spec.arms if name in found]


def _viewed(run: ArmRun, stages: Mapping[str, str], problems: Mapping[str, list[str]]) -> ArmRun:
    values = {
        f"{own}.{metric}": value
        for own, stage in stages.items()
        for name, value in run.values.items()
        for at, _, metric in [name.partition(".")]
        if at == stage
    }
    shares = {
        own: run.shares[stage]
        for own, stage in stages.items()
        if stage in run.shares and problems.get(own) == problems.get(stage)
    }
    return replace(run, values=values, shares=shares, curves={}, watched={})
