"""What a user may write in a comparison file. YAML keys are exactly these field names; anything else is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator

from posttrain.errors import UserError, nearest
from posttrain.recipe.messages import Place, messages
from posttrain.recipe.reading import read_mapping
from posttrain.recipe.strict import Strict

BASE = "base"
"""The arm that nobody writes: the model that all start from."""


class Arm(Strict):
    """One of the things compared: a recipe with changes."""

    recipe: str | None = Field(None, description="a shipped recipe or a YAML file; default: the comparison's")
    set: dict[str, Any] = Field({}, description="changes to the recipe, keys as on the command line")
    view_of: str | None = Field(None, description="another arm: nothing is run, its runs are looked at in other stages")
    stages: dict[str, str] = Field(
        {}, description="of a view: a stage's name -> the stage of the other arm it stands for"
    )

    @model_validator(mode="after")
    def _runs_or_views(self) -> "Arm":
        if (self.view_of is None) != (not self.stages):
            raise ValueError("a view needs both 'view_of', an arm, and 'stages', which of its stages are looked at")
        if self.view_of is not None and (self.recipe is not None or self.set):
            raise ValueError("'recipe' and 'set' have no effect on a view, which runs nothing: leave them out")
        return self


class Budget(Strict):
    """What each run of an arm may spend on training; with none of the three, what its recipe says."""

    steps: PositiveInt | None = Field(None, description="optimiser steps")
    tokens: PositiveInt | None = Field(None, description="input tokens, prompts included")
    seconds: float | None = Field(None, gt=0, description="of training, converted to steps by a short pilot")

    @model_validator(mode="after")
    def _one_kind(self) -> "Budget":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of steps, tokens, seconds; found {', '.join(given)}")
        return self


class Claim(Strict):
    """A statement with its decision rule, written before anything is run.

    Supported: the whole 95 % interval is on the claimed side; not supported: the whole interval is on the other side;
    inconclusive: neither.
    """

    text: str
    metric: str = Field(description="STAGE.METRIC of an evaluation; of a train stage: seconds, loss, log.NAME ...")
    of: str = Field(description="an arm, or base")
    minus: str | None = Field(None, description="an arm, or base: the claim is about the difference")
    over: str | None = Field(
        None, description="an arm, the ceiling: the claim is about the share of the gap between it and 'minus'"
    )
    than: tuple[str, str] | None = Field(
        None, description="two arms: the claim is about how far 'of' minus 'minus' is above their difference"
    )
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_side(self) -> "Claim":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either at_least or at_most: what decides")
        if "." not in self.metric:
            raise ValueError(f"metric '{self.metric}' is not of the form STAGE.METRIC, like test.accuracy")
        if self.over is not None and (self.minus is None or self.over == self.minus):
            raise ValueError("'over' is the upper end of a gap: 'minus' names its lower end, which is another arm")
        if self.than is not None and (self.minus is None or self.over is not None):
            raise ValueError("'than' sets one difference against another: it wants 'minus', and no 'over'")
        return self

    @property
    def named(self) -> list[str]:
        """The arms that the claim is about."""
        return [name for name in (self.of, self.minus, self.over, *(self.than or ())) if name is not None]


class Comparison(Strict):
    """Arms over seeds, with the same budget."""

    name: str = Field(pattern=r"^[^/\s]+$")
    paper: int | None = Field(None, description="number in `posttrain methods`")
    description: str = ""
    recipe: str | None = Field(None, description="of every arm that names none")
    set: dict[str, Any] = Field({}, description="changes to the recipe of every arm, keys as on the command line")
    arms: dict[str, Arm] = Field(min_length=1)
    seeds: list[NonNegativeInt] = Field([0, 1, 2], min_length=1, description="the recipe's seed; 3 stands for 0, 1, 2")
    budget: Budget = Budget()
    tune: dict[str, list[Any]] = Field({}, description="values to try, of every arm alike: {lr: [1.0e-4, 1.0e-3]}")
    tune_on: str | None = Field(None, description="STAGE.METRIC, or DATA.METRIC of a data set that nothing else reads")
    claims: list[Claim] = Field([])

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_of_seeds(cls, value: Any) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("arms", mode="before")
    @classmethod
    def _plain_arms(cls, value: Any) -> Any:
        return {name: arm or {} for name, arm in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _names_fit(self) -> "Comparison":
        for name, arm in self.arms.items():
            if name == BASE or "/" in name or not name.strip() or name.startswith("."):
                raise ValueError(f"an arm cannot be called '{name}': it is a folder's name, and '{BASE}' is the start")
            if arm.view_of is not None and (arm.view_of not in self.arms or self.arms[arm.view_of].view_of is not None):
                raise ValueError(f"arm '{name}' is a view of '{arm.view_of}', which is no arm that is run")
            if (arm.recipe or self.recipe) is None and arm.view_of is None:
                raise ValueError(f"arm '{name}' has no recipe: give it one, or one for all arms")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are there twice: {self.seeds}")
        if self.tune and self.tune_on is None:
            raise ValueError("tune needs tune_on: what is best, measured on validation data (validation.accuracy)")
        if self.tune_on is not None and "." not in self.tune_on:
            raise ValueError(f"tune_on '{self.tune_on}' is not of the form STAGE.METRIC, like validation.accuracy")
        if empty := [key for key, values in self.tune.items() if not values]:
            raise ValueError(f"tune: '{empty[0]}' has no values to try")
        for claim in self.claims:
            for arm_name in claim.named:
                if arm_name not in (BASE, *self.arms):
                    known = nearest(arm_name, [BASE, *self.arms])
                    raise ValueError(f"the claim '{claim.text}' is about arm '{arm_name}', which is none: {known}")
        return self


def read_comparison(path: Path, changes: Mapping[str, Any] | None = None) -> Comparison:
    """The checked comparison of a YAML file; `changes` replace its keys, those of `set` and `arms` are added.

    Recipes that lie beside the file are found there. Raises `UserError` that names the file, the line and the key, and
    for an added arm that is there already.
    """
    content, text = read_mapping(path, "comparison", "arms")
    content.setdefault("name", path.stem)
    added = dict(changes or {})
    given = {key: value for key in ("set", "arms") if isinstance(value := content.get(key), dict)}
    if again := [name for name in added.get("arms", {}) if name in given.get("arms", {})]:
        raise UserError(f"{path} has an arm '{again[0]}' already: give the added one a change of its own")
    added |= {key: {**value, **added[key]} for key, value in given.items() if added.get(key)}
    checked = check_comparison({**content, **added}, str(path), text)
    return checked.model_copy(
        update={
            "recipe": _beside(path, checked.recipe),
            "arms": {
                name: arm.model_copy(update={"recipe": _beside(path, arm.recipe)}) for name, arm in checked.arms.items()
            },
        }
    )


def check_comparison(content: dict[str, Any], where: str = "comparison", text: str = "") -> Comparison:
    """The checked comparison of a nested dictionary; `text` is the YAML that it came from, for messages."""
    try:
        return Comparison.model_validate(content)
    except ValidationError as error:
        found = messages(error, content, Place(where, text, {}), fields_at=_fields_at)
        raise UserError("\n".join(found)) from None


def _beside(path: Path, recipe: str | None) -> str | None:
    beside = path.parent / recipe if recipe else None
    return str(beside) if beside is not None and beside.is_file() else recipe


def _fields_at(keys: tuple[str, ...]) -> list[str]:
    """Names that may stand at a place of a comparison file."""
    kind: type[BaseModel] = Comparison
    for key in keys:
        field = kind.model_fields.get(key)
        inner = [field.annotation, *get_args(field.annotation)] if field else []
        kind = next((found for found in inner if isinstance(found, type) and issubclass(found, BaseModel)), kind)
    return list(kind.model_fields)
