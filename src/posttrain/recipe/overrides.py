"""`key.path=value` on the command line."""

from typing import Any

from posttrain.errors import UserError
from posttrain.recipe.fields import STAGE_KINDS, Recipe
from posttrain.recipe.inputs import Data, Model
from posttrain.recipe.messages import suggestion
from posttrain.recipe.yaml_text import yaml_value

PIECES = ("objective", "adapter", "task")
"""Fields that name a piece: `objective: nll` is short for `objective: {name: nll}`."""


def override(content: dict[str, Any], overrides: list[str]) -> dict[tuple[str, ...], str]:
    """Set each `key.path=value` in a recipe's content; returns which path each of them has set.

    A key is one of the recipe (`data.train.count`), one below a stage's name (`sft.lr`), or a stage's key, which is set
    in all stages that have it (`lr`). Raises `UserError` with the nearest key.
    """
    paths: dict[tuple[str, ...], str] = {}
    for given in overrides:
        key, separator, text = given.partition("=")
        if not separator or not key:
            raise UserError(f"override '{given}' is not of the form key.path=value")
        for path in _paths(key.split("."), content):
            _set(content, path, yaml_value(text), given)
            paths[tuple(path)] = given
    return paths


def _paths(parts: list[str], content: dict[str, Any]) -> list[list[str]]:
    stages = content.get("stages")
    if parts[0] in Recipe.model_fields or not isinstance(stages, dict):
        return [parts]
    if parts[0] in stages:
        return [["stages", *parts]]
    fields = {name: _fields(stage) for name, stage in stages.items()}
    fitting = [["stages", name, *parts] for name, known in fields.items() if parts[0] in known]
    if not fitting:
        raise UserError(f"override '{'.'.join(parts)}': unknown key '{parts[0]}': {_meant(parts[0], content, fields)}")
    return fitting


def _meant(key: str, content: dict[str, Any], fields: dict[Any, set[str]]) -> str:
    """A clause that helps: a key of the model or of a data set without what it belongs to, or the nearest key."""
    if key in Model.model_fields:
        return f"did you mean 'model.{key}'?"
    if key in Data.model_fields:
        data = content.get("data")
        names = data if isinstance(data, dict) and data else ["NAME"]
        return "did you mean " + " or ".join(f"'data.{name}.{key}'" for name in names) + "?"
    return suggestion(
        key, {*Recipe.model_fields, *map(str, fields), *(name for each in fields.values() for name in each)}
    )


def _fields(stage: Any) -> set[str]:
    """What can be set in a stage without naming it: `steps=100` means training, not the functions of a curate stage."""
    kind = stage.get("kind") if isinstance(stage, dict) else None
    if not isinstance(kind, str) or kind not in STAGE_KINDS:
        return set()
    return set(STAGE_KINDS[kind].model_fields) - ({"kind", "steps"} if kind == "curate" else {"kind"})


def _set(content: dict[str, Any], path: list[str], value: Any, given: str) -> None:
    node: Any = content
    for depth, part in enumerate(path[:-1]):
        node = _opened(node, part, path[: depth + 1])
        if not isinstance(node, dict | list):
            raise UserError(f"override '{given}': '{part}' is no mapping, so nothing can be set inside it")
    key = path[-1]
    if isinstance(node, dict):
        node[key] = value
    elif key.isdecimal() and int(key) < len(node):
        node[int(key)] = value
    else:
        raise UserError(f"override '{given}': '{key}' is no item of the list, which has {len(node)}, from 0")


def _opened(node: Any, part: str, path: list[str]) -> Any:
    """What `part` names in `node`, made or written out in full where a default or a short form stands for it."""
    if isinstance(node, list):
        return node[int(part)] if part.isdecimal() and int(part) < len(node) else None
    short = node.get(part)
    if part in PIECES and isinstance(short, str):
        node[part] = {"name": short}
    elif (path == ["model"] or (len(path) == 2 and path[0] in ("models", "data"))) and isinstance(short, str):
        node[part] = {"path": short}
    elif short is None:
        node[part] = Recipe.model_fields["model"].default.model_dump(exclude_defaults=True) if path == ["model"] else {}
    return node[part]
