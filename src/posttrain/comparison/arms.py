"""From a comparison to the recipes that are run: of arms, of the start, of pilots and of tuning."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from posttrain.comparison.spec import BASE, Comparison
from posttrain.errors import UserError, nearest
from posttrain.recipe import Continual, Evaluate, Recipe, evaluations_read, read_recipe
from posttrain.stages.context import leaves

PILOT_STEPS = 8
"""Enough for a median behind the first steps, which are slow."""


@dataclass(frozen=True)
class Job:
    """A recipe to run, in a folder of its own. `kind`: run, tune or pilot; `set`: what tuning tries."""

    arm: str
    seed: int
    kind: str
    recipe: Recipe
    set: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.folder)

    @property
    def label(self) -> str:
        """`dft seed 1`, `dft tune lr=0.001`, as progress names it."""
        if self.kind == "run":
            return self.arm if self.arm == BASE else f"{self.arm} seed {self.seed}"
        return " ".join([self.arm, self.kind, *(f"{key}={value}" for key, value in self.set.items())])


def arm_recipe(comparison: Comparison, name: str, more: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of an arm with its changes, and `more` of them, without evaluations of the start.

    Raises `UserError` that names the arm.
    """
    arm = comparison.arms[name]
    changes = {**comparison.set, **arm.set, **(more or {})}
    try:
        recipe = read_recipe(str(arm.recipe or comparison.recipe), [f"{k}={json.dumps(v)}" for k, v in changes.items()])
    except UserError as error:
        raise UserError(f"arm '{name}': {error}") from None
    continual = [key for key, stage in recipe.stages.items() if isinstance(stage, Continual)]
    read = {other for key in continual for other in evaluations_read(recipe, key).values()}
    before = [
        key
        for key, stage in recipe.stages.items()
        if isinstance(stage, Evaluate) and stage.model == BASE and key not in read
    ]
    if not trained_stages(recipe):
        raise UserError(f"arm '{name}': its recipe '{recipe.name}' trains nothing, so there is nothing to compare")
    return without(recipe, before)


def trained_stages(recipe: Recipe) -> list[str]:
    """Names of the train stages."""
    return [name for name, stage in recipe.stages.items() if stage.kind == "train"]


def without(recipe: Recipe, stages: list[str]) -> Recipe:
    """The recipe without some stages."""
    left = {name: stage for name, stage in recipe.stages.items() if name not in stages}
    return recipe.model_copy(update={"stages": left})


def with_steps(recipe: Recipe, steps: Mapping[str, int]) -> Recipe:
    """The recipe with so many steps of each train stage named."""
    stages = {
        name: stage.model_copy(update={"steps": steps[name]}) if name in steps else stage
        for name, stage in recipe.stages.items()
    }
    return recipe.model_copy(update={"stages": stages})


def job(root: Path, arm: str, seed: int, kind: str, recipe: Recipe, tried: Mapping[str, Any] | None = None) -> Job:
    """A job in its folder beneath the comparison's: ARM/seed0, ARM/pilot, ARM/tune-lr=0.001, base/seed0."""
    tried = tried or {}
    own = {"pilot": "pilot", "tune": "tune-" + ",".join(f"{k}={_in_a_name(v)}" for k, v in tried.items())}
    folder = root / arm / own.get(kind, f"seed{seed}")
    placed = recipe.model_copy(update={"seed": seed, "out": str(folder), "name": f"{arm} {folder.name}"})
    return Job(arm, seed, kind, placed, tried)


def base_recipe(recipe: Recipe) -> Recipe | None:
    """The evaluations of an arm's trained models, asked of what it starts from; None where there is nothing to ask.

    What they measure by a model that another stage makes (its KL, what it likes best) is left out.
    """
    first = recipe.stages[trained_stages(recipe)[0]]
    start = getattr(first, "init_from", BASE)
    written = {name for name, stage in recipe.stages.items() if stage.kind in ("generate", "curate")}
    stages = {
        name: stage.model_copy(update={"model": BASE if start in recipe.stages else start, **_unmade(recipe, stage)})
        for name, stage in recipe.stages.items()
        if isinstance(stage, Evaluate) and not ({stage.data} | _read(recipe, stage.data)) & written
    }
    return recipe.model_copy(update={"stages": stages}) if stages else None


def _unmade(recipe: Recipe, stage: Evaluate) -> dict[str, None]:
    """The models beside the one it asks that an evaluation needs, of those which a stage of the recipe makes."""
    return {key: None for key in ("reference", "rerank") if getattr(stage, key) in recipe.stages}


def _read(recipe: Recipe, data: str) -> set[str | None]:
    """The stages that write a named data set, or parts of it."""
    return {leaf.stage for leaf in leaves(recipe.data[data])} if data in recipe.data else set()


def pilot_recipe(recipe: Recipe) -> Recipe:
    """A few steps of each train stage, and nothing that comes behind them."""
    asked = [name for name, stage in recipe.stages.items() if isinstance(stage, Evaluate | Continual)]
    return with_steps(without(recipe, asked), dict.fromkeys(trained_stages(recipe), PILOT_STEPS))


def settings(tune: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values to try."""
    return [dict(zip(tune, values, strict=True)) for values in product(*tune.values())]


def tuning_recipe(recipe: Recipe, tune_on: str, arm: str) -> Recipe:
    """Of the evaluations, the one of `tune_on` alone.

    Where no stage is called so, but a data set is, it is asked as the trained model's first evaluation asks. Raises
    `UserError` where neither is, and where the final runs report what would be tuned on.
    """
    name = tune_on.partition(".")[0]
    asked = {key: stage for key, stage in recipe.stages.items() if isinstance(stage, Evaluate)}
    if name not in asked and name not in recipe.data:
        raise UserError(f"arm '{arm}': tune_on '{tune_on}': {nearest(name, [*asked, *recipe.data])}")
    if name not in asked and not asked:
        raise UserError(f"arm '{arm}': its recipe has no evaluation, so nothing says how '{name}' is asked")
    like = next(iter(asked.values()), None)
    stage = asked[name] if name in asked or like is None else like.model_copy(update={"data": name, "reference": None})
    reported = [key for key, other in asked.items() if key != name and other.data == stage.data]
    if reported:
        raise UserError(
            f"arm '{arm}': tune_on '{tune_on}' is measured on data '{stage.data}', which '{reported[0]}' reports: what "
            "was chosen on the test data looks better than it is; tune on validation data of its own"
        )
    left = {key: stage for key, stage in recipe.stages.items() if key not in asked and not isinstance(stage, Continual)}
    return recipe.model_copy(update={"stages": {**left, name: stage}})


def _in_a_name(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in "+-._" else "_" for c in text)
