"""`posttrain eval` as a recipe of one stage, so that it shares everything with recipes that users write."""

from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.recipe.fields import Recipe
from posttrain.recipe.reading import check_recipe
from posttrain.recipe.yaml_text import yaml_value

STAGE = "evaluate"


def evaluation_recipe(
    model: str,
    *,
    task: str | None = None,
    options: list[str] | None = None,
    path: str | None = None,
    count: int | None = None,
    difficulty: str = "in",
    seed: int = 0,
    out: str | None = None,
    dtype: str = "float32",
    **decoding: Any,
) -> Recipe:
    """The recipe that asks `model` the problems of a task, or of a file at `path`, and scores the answers.

    `options`: a task's, as `key=value`. `decoding`: fields of the evaluate stage. Raises `UserError`.
    """
    if (task is None) == (path is None):
        raise UserError("give either --task NAME or --data FILE: what is asked")
    if task is not None:
        named = {"name": task, **_options(options or [])}
        data: dict[str, Any] = {"task": named, "count": count or 300, "seed": seed, "difficulty": difficulty}
    elif options or difficulty != "in":
        raise UserError(
            f"{'--option' if options else '--difficulty'} belongs to --task; a file given with --data has none"
        )
    else:
        data = {"path": path} | ({"count": count} if count is not None else {})
    asked = task or Path(str(path)).stem
    name = Path(model).name
    name = "model" if name in ("", "base", STAGE) else name
    content = {
        "name": STAGE,
        "description": f"{model} on {task or path}",
        "seed": seed,
        "out": out,
        "model": {"path": model, "dtype": dtype},
        "models": {name: {"path": model, "dtype": dtype}},
        "data": {asked: data},
        "stages": {STAGE: {"kind": "evaluate", "model": name, "data": asked, **decoding}},
    }
    return check_recipe(content, "posttrain eval")


def _options(given: list[str]) -> dict[str, Any]:
    options = {}
    for option in given:
        key, separator, text = option.partition("=")
        if not separator or not key:
            raise UserError(f"--option '{option}' is not of the form key=value")
        options[key] = yaml_value(text)
    return options
