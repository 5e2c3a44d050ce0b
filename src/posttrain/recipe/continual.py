"""Which evaluations a continual stage reads: every stage of the sequence on the tasks learned so far."""

from itertools import pairwise

from posttrain.errors import UserError, nearest
from posttrain.recipe.fields import Continual, Evaluate, Recipe

Cell = tuple[str, str]
"""A model and a data set."""


def evaluations_read(recipe: Recipe, name: str) -> dict[Cell, str]:
    """(model, data set) -> the evaluate stage before the continual stage `name` that asked the one about the other.

    Raises `UserError` where an evaluation is missing or there twice, and for stages that do not start from one another.
    """
    stage = recipe.stages[name]
    assert isinstance(stage, Continual)
    found: dict[Cell, list[str]] = {}
    for other, fields in recipe.stages.items():
        if other == name:
            break
        if isinstance(fields, Evaluate):
            found.setdefault((fields.model, fields.data), []).append(other)
    read = {}
    for model, data in _cells(recipe, stage):
        names = found.get((model, data), [])
        if not names:
            raise UserError(
                f"no evaluate stage before it asks '{model}' about '{data}': add one, such as "
                f"{data}_after_{model}: {{kind: evaluate, model: {model}, data: {data}}}"
            )
        if len(names) > 1:
            raise UserError(
                f"{' and '.join(names)} both ask '{model}' about '{data}': which accuracy counts? Leave one"
            )
        read[model, data] = names[0]
    return read


def start_of(recipe: Recipe, stage: Continual) -> str:
    """The model that the sequence starts from."""
    first = next(iter(stage.tasks.values()))
    return _sources(recipe, first)[0]


def _cells(recipe: Recipe, stage: Continual) -> list[Cell]:
    """What has to be evaluated: the lower half of the matrix, and other abilities before and behind."""
    tasks, models = list(stage.tasks), list(stage.tasks.values())
    _sources(recipe, models[0])
    for earlier, later in pairwise(models):
        if not _comes_from(recipe, later, earlier):
            raise UserError(f"'{later}' does not start from '{earlier}', which 'tasks' names before it: no sequence")
    cells = [(model, data) for place, model in enumerate(models) for data in tasks[: place + 1]]
    ends = (start_of(recipe, stage), models[-1]) if stage.general else ()
    return [*cells, *((model, data) for data in stage.general for model in ends)]


def _comes_from(recipe: Recipe, later: str, earlier: str) -> bool:
    """Do the weights of one stage go back to another's, over whatever stages lie between?"""
    seen: set[str] = set()
    waiting = _sources(recipe, later)
    while waiting:
        model = waiting.pop()
        if model == earlier:
            return True
        if model in recipe.stages and model not in seen:
            seen.add(model)
            waiting += _sources(recipe, model)
    return False


def _sources(recipe: Recipe, name: str) -> list[str]:
    """The models that a stage makes its own from."""
    stage = recipe.stages.get(name)
    if stage is None or stage.kind not in ("train", "merge"):
        known = [key for key, fields in recipe.stages.items() if fields.kind in ("train", "merge")]
        raise UserError(f"'{name}' is no train or merge stage, so it learns no task: {nearest(name, known)}")
    return [stage.init_from] if stage.kind == "train" else list(stage.models)
