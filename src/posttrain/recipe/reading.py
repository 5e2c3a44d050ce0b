"""From YAML and dotted overrides to a checked `Recipe`; every error names the key, what was found and the line."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from posttrain.errors import UserError, nearest
from posttrain.recipe.fields import STAGE_KINDS, Recipe
from posttrain.recipe.messages import Place, messages
from posttrain.recipe.overrides import override
from posttrain.recipe.yaml_text import load_yaml

_KINDS = {list: "a list", bool: "true or false", int: "a number", float: "a number"}
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

    A stage that is null is left out: one of the recipe that it extends, or by an override (`student=null`).
    Raises `UserError` that names the file, the line, the key and the nearest valid key.
    """
    path = find_recipe(name)
    content, text = read_mapping(path)
    content.setdefault("name", path.stem)
    content = _extended(content, path, [])
    given = override(content, overrides or [])
    if isinstance(stages := content.get("stages"), dict):
        content["stages"] = {stage: fields for stage, fields in stages.items() if fields is not None}
    return check_recipe(content, str(path), text, given)


def read_mapping(path: Path, kind: str = "recipe", least: str = "stages") -> tuple[dict[str, Any], str]:
    """The content and the text of a YAML file that holds a mapping; for messages: what it is, and its key at least.

    Raises `UserError` for what cannot be read, is no YAML or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    content = load_yaml(text, str(path))
    if content is None:
        raise UserError(f"{path}: the file is empty; a {kind} has at least '{least}'")
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a {kind} is a mapping of keys ('{least}: ...'), found {_KINDS.get(type(content), 'text')}"
        )
    return content, text


def _extended(content: dict[str, Any], path: Path, seen: list[str]) -> dict[str, Any]:
    """The content with what it `extends` beneath it: mappings are merged key by key, all else is replaced."""
    name = content.pop("extends", None)
    if name is None:
        return content
    if not isinstance(name, str):
        raise UserError(f"{path}: 'extends' is the name or path of one recipe, found {name!r}")
    beside = path.parent / name
    parent = (beside if beside.is_file() else find_recipe(name)).resolve()
    seen = [*seen, str(path.resolve())]
    if str(parent) in seen:
        raise UserError(f"{path}: recipes extend one another in a circle: {' -> '.join([*seen, str(parent)])}")
    below = _extended(read_mapping(parent)[0], parent, seen)
    return _merged({key: value for key, value in below.items() if key not in ("paper", "description")}, content)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, key by key. New keys stand before the next key of `above` that `below` has too, else last: stages have an
    order, and one that makes data must come before the one that reads them."""
    order = list(below)
    waiting: list[str] = []
    for key in above:
        if key in below:
            place = order.index(key)
            order[place:place] = waiting
            waiting = []
        else:
            waiting.append(key)
    return {key: _over(below.get(key), above[key]) if key in above else below[key] for key in [*order, *waiting]}


def _over(below: Any, above: Any) -> Any:
    return _merged(below, above) if isinstance(below, dict) and isinstance(above, dict) else above


def check_recipe(
    content: dict[str, Any],
    where: str = "recipe",
    text: str = "",
    overrides: Mapping[tuple[str, ...], str] | None = None,
) -> Recipe:
    """The checked recipe of a nested dictionary.

    For messages: `text` is the YAML it came from, `overrides` says which keys an override has set.
    """
    place = Place(where, text, overrides or {})
    stages = content.get("stages")
    if isinstance(stages, dict):
        for stage, fields in stages.items():
            if isinstance(fields, dict) and "kind" not in fields:
                kinds = ", ".join(STAGE_KINDS)
                raise UserError(f"{place(('stages', str(stage)))}: stage '{stage}' has no 'kind' ({kinds})")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(messages(error, content, place))) from None


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
            plain = value.model_dump(mode="json", exclude_defaults=True)[name]
            changed[f"{prefix}.{name}"] = [None if field.is_required() else default, plain]
    return changed
