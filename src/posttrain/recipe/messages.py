"""What is wrong with a recipe, in a sentence each: the place, the key, what was found, what would be right."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from posttrain.errors import nearest
from posttrain.recipe.fields import STAGE_KINDS, Data, Model, Recipe
from posttrain.recipe.yaml_text import line_of

Keys = tuple[str, ...]

_WANTED = {
    "model_type": "has to be a mapping of keys",
    "model_attributes_type": "has to be a mapping of keys",
    "dict_type": "has to be a mapping of keys",
    "list_type": "has to be a list",
    "string_type": "has to be text",
    "bool_type": "has to be true or false",
    "bool_parsing": "has to be true or false",
    "int_type": "has to be a whole number",
    "int_parsing": "has to be a whole number",
    "int_from_float": "has to be a whole number",
    "float_type": "has to be a number",
    "float_parsing": "has to be a number",
    "greater_than": "has to be above {gt}",
    "greater_than_equal": "has to be {ge} or more",
    "less_than_equal": "has to be {le} or less",
    "less_than": "has to be below {lt}",
    "too_short": "has to have {min_length} or more items",
}
"""pydantic's kinds of errors in our words; the others are said in pydantic's."""


@dataclass(frozen=True)
class Place:
    """Where a key was written: `where` is the file with the YAML `text`, or an override set it."""

    where: str
    text: str
    overrides: Mapping[Keys, str]

    def __call__(self, keys: Keys) -> str:
        """The place of a key: `recipe.yaml:7`, or the override that set it."""
        for path, given in self.overrides.items():
            if keys[: len(path)] == path or path[: len(keys)] == keys:
                return f"override '{given}'"
        line = line_of(self.text, keys)
        return f"{self.where}:{line}" if line else self.where


def messages(error: ValidationError, content: Any, place: Place) -> list[str]:
    """A message for each wrong key, in order. Where a value fits none of several types, one message stands for all."""
    found: dict[Keys, list[Any]] = {}
    for item in error.errors():
        tagged = tuple(str(part) for part in item["loc"])
        keys = _without_tags(tagged)
        if item["type"] not in ("extra_forbidden", "missing"):
            keys = _written(keys, content)
        found.setdefault(keys, []).append((tagged, item))
    return [f"{place(keys)}: {_message(keys, items, content)}" for keys, items in found.items()]


def _message(keys: Keys, items: list[tuple[Keys, Any]], content: Any) -> str:
    tagged, error = items[0]
    name = ".".join(keys)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{name}': {nearest(keys[-1], _fields_at(tagged[:-1]))}"
    if error["type"] == "missing":
        return f"'{name}' is missing"
    if error["type"] == "union_tag_invalid":
        kind = str(error["input"].get("kind"))
        return f"'{name}.kind' is '{kind}': {nearest(kind, STAGE_KINDS)}"
    if error["type"] == "value_error":
        return f"'{name}': {str(error['msg']).removeprefix('Value error, ')}"
    wants = [_wanted(each) for _, each in items]
    wanted = " or ".join(dict.fromkeys([wants[0], *(want.removeprefix("has to be ") for want in wants[1:])]))
    return f"'{name}' {wanted}, found {_value_at(keys, content, error['input'])!r}"


def _wanted(error: Any) -> str:
    if error["type"] in _WANTED:
        return _WANTED[error["type"]].format(**error.get("ctx", {}))
    if error["type"] == "literal_error":
        return f"has to be {error['ctx']['expected']}"
    return str(error["msg"][0].lower() + error["msg"][1:]).replace("input should be", "has to be")


def _without_tags(keys: Keys) -> Keys:
    """pydantic puts a stage's kind behind its name; the YAML does not."""
    return keys[:2] + keys[3:] if len(keys) > 2 and keys[0] == "stages" and keys[2] in STAGE_KINDS else keys


def _written(keys: Keys, content: Any) -> Keys:
    """The part of a path that the content holds: what follows are pydantic's names for the types that it tried."""
    node, depth = content, 0
    for key in keys:
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            break
        depth += 1
    return keys[:depth] or keys


def _value_at(keys: Keys, content: Any, otherwise: Any) -> Any:
    node = content
    for key in keys:
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            return otherwise
    return node


def _fields_at(keys: Keys) -> list[str]:
    """Names that may stand at a place of the recipe."""
    if not keys:
        return list(Recipe.model_fields)
    if keys[0] in ("model", "models"):
        return list(Model.model_fields)
    if keys[0] == "data":
        return list(Data.model_fields)
    if keys[0] == "stages" and len(keys) > 2:
        model: Any = STAGE_KINDS.get(keys[2], Recipe)
        for key in keys[3:]:
            field = model.model_fields.get(key)
            inner = [t for t in get_args(field.annotation) if _is_model(t)] if field else []
            model = inner[0] if inner else model
        return list(model.model_fields)
    return list(Recipe.model_fields)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
