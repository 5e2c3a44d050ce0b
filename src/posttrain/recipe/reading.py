"""From YAML and dotted overrides to a checked `Recipe`; every error names the key, what was found and the line."""

from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from posttrain.errors import UserError, nearest
from posttrain.recipe.fields import STAGE_KINDS, Data, Model, Recipe

_SHIPPED = Path(str(files("posttrain"))) / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe's name or of a path. Raises `UserError` with the nearest name."""
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise UserError(f"recipe file '{name}' does not exist")
    raise UserError(f"no shipped recipe is called '{name}', and no such file exists: {nearest(name, shipped)}")


def read_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """A shipped recipe's name or a YAML path, with `key.path=value` overrides, checked.

    Raises `UserError` that names the file, the line, the key and the nearest valid key.
    """
    path = find_recipe(name)
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, found {type(content).__name__}")
    content.setdefault("name", path.stem)
    return check_recipe(_overridden(content, overrides or []), str(path), text)


def check_recipe(content: dict[str, Any], where: str = "recipe", text: str = "") -> Recipe:
    """The checked recipe of a nested dictionary; `text` is the YAML it came from, for line numbers."""
    stages = content.get("stages")
    if isinstance(stages, dict):
        for stage, fields in stages.items():
            if isinstance(fields, dict) and "kind" not in fields:
                kinds = ", ".join(STAGE_KINDS)
                raise UserError(f"{where}{_line(text, ('stages', stage))}: stage '{stage}' has no 'kind' ({kinds})")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        messages = [_message(dict(item), where, text) for item in error.errors()]
        raise UserError("\n".join(dict.fromkeys(messages))) from None


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def changed_fields(recipe: Recipe) -> dict[str, list[Any]]:
    """Dotted key -> [default, value] of every field that differs from its default."""
    changed: dict[str, list[Any]] = {}
    for key, value in (("model", recipe.model), *((f"models.{k}", v) for k, v in recipe.models.items())):
        changed |= _changed(key, value)
    for name, data in recipe.data.items():
        changed |= _changed(f"data.{name}", data)
    for name, stage in recipe.stages.items():
        changed |= _changed(f"stages.{name}", stage)
    if recipe.seed:
        changed["seed"] = [0, recipe.seed]
    return changed


def _changed(prefix: str, value: BaseModel) -> dict[str, list[Any]]:
    changed: dict[str, list[Any]] = {}
    for name, field in type(value).model_fields.items():
        found, default = getattr(value, name), field.get_default(call_default_factory=True)
        if isinstance(found, BaseModel):
            changed |= _changed(f"{prefix}.{name}", found)
        elif found != default and name != "kind":
            plain = value.model_dump(mode="json")[name]
            changed[f"{prefix}.{name}"] = [None if field.is_required() else default, plain]
    return changed


def _overridden(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override '{override}' is not of the form key.path=value")
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            value = text
        for path in _paths(key.split("."), content):
            _set(content, path, value, key)
    return content


def _paths(parts: list[str], content: dict[str, Any]) -> list[list[str]]:
    """Where an override goes: a recipe key as it is; a stage's name; or a stage's key, for all stages that have it."""
    stages = content.get("stages")
    if parts[0] in Recipe.model_fields or not isinstance(stages, dict):
        return [parts]
    if parts[0] in stages:
        return [["stages", *parts]]
    fitting = [
        ["stages", name, *parts]
        for name, stage in stages.items()
        if isinstance(stage, dict)
        and stage.get("kind") in STAGE_KINDS
        and parts[0] in STAGE_KINDS[stage["kind"]].model_fields
    ]
    if not fitting:
        known = {*Recipe.model_fields, *stages}
        for stage in stages.values():
            known |= (
                set(STAGE_KINDS.get(stage.get("kind", ""), Recipe).model_fields) if isinstance(stage, dict) else set()
            )
        raise UserError(f"override '{'.'.join(parts)}': unknown key '{parts[0]}': {nearest(parts[0], known)}")
    return fitting


def _set(content: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    node: Any = content
    for part in path[:-1]:
        if isinstance(node.get(part), str) and part != "kind":
            node[part] = (
                {"name" if path[-1] != "path" else "path": node[part]} if part == "objective" else {"path": node[part]}
            )
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise UserError(f"override '{key}': '{part}' is not a mapping, so nothing can be set inside it")
    node[path[-1]] = value


def _message(error: dict[str, Any], where: str, text: str) -> str:
    keys = tuple(str(part) for part in error["loc"])
    plain = _without_tags(keys)
    name = ".".join(plain)
    place = f"{where}{_line(text, plain)}"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key '{name}': {nearest(plain[-1], _fields_at(keys[:-1]))}"
    if error["type"] == "missing":
        return f"{place}: '{name}' is missing"
    if error["type"] == "union_tag_invalid":
        found = error["input"].get("kind") if isinstance(error["input"], dict) else error["input"]
        return f"{place}: '{name}.kind' is '{found}': {nearest(str(found), STAGE_KINDS)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    found = "" if error["type"] == "value_error" else f", found {error['input']!r}"
    return f"{place}: '{name}': {message[0].lower()}{message[1:]}{found}"


def _without_tags(keys: tuple[str, ...]) -> tuple[str, ...]:
    """pydantic puts a stage's kind behind its name; the YAML does not."""
    return keys[:2] + keys[3:] if len(keys) > 2 and keys[0] == "stages" and keys[2] in STAGE_KINDS else keys


def _fields_at(keys: tuple[str, ...]) -> list[str]:
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
            inner = (
                [t for t in get_args(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
                if field
                else []
            )
            model = inner[0] if inner else model
        return list(model.model_fields)
    return list(Recipe.model_fields)


def _line(text: str, keys: tuple[str, ...]) -> str:
    """`:line` of the deepest key of a path that the YAML text holds."""
    if not text:
        return ""
    node = yaml.compose(text)
    line: int | None = None
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        found = [(k, v) for k, v in node.value if k.value == key]
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return f":{line}" if line else ""
