"""Names in a recipe, and the functions that they stand for.

Each room that a recipe names pieces of has one `Registry`. A piece is a function (or class) whose keyword-only
parameters are its options: their names, types and defaults are what a user may write in YAML, and are checked by
pydantic before anything runs.

    objectives: Registry[...] = Registry("objective")

    @objectives.register("focal")
    def focal(scores, batch, *, gamma: float = 2.0): ...

    objectives.options({"name": "focal", "gamma": 1.0})   # -> ("focal", {"gamma": 1.0})
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from posttrain.errors import UserError, nearest, said, wanted, written

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Pieces of one kind by name. `kind` is the word that error messages use ("objective", "task", "reward" ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._pieces: dict[str, T] = {}
        self._models: dict[str, type[BaseModel]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `name` in a recipe stands for the decorated function; its keyword-only parameters are options."""

        def add(piece: T) -> T:
            if name in self._pieces:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._models[name] = _options_model(self.kind, name, piece)
            self._pieces[name] = piece
            return piece

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._pieces))

    def __contains__(self, name: object) -> bool:
        return name in self._pieces

    def __getitem__(self, name: str) -> T:
        if name not in self._pieces:
            file = ".py" in name
            hint = "say imports: [FILE.py] at the top, and here the name that it registers; " if file else ""
            raise UserError(f"unknown {self.kind} '{name}': {hint}{nearest(name, self._pieces)}")
        return self._pieces[name]

    def defaults(self, name: str) -> dict[str, Any]:
        """Option name -> default of the piece `name` (options without a default are left out)."""
        self[name]
        fields = self._models[name].model_fields
        return {key: field.get_default() for key, field in fields.items() if not field.is_required()}

    def options(self, spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Check what a recipe says of a piece, `"name"` or `{"name": ..., option: value}`, and fill in its defaults.

        Raises `UserError` that names an unknown piece, an unknown option (with the nearest one) or a wrong type.
        """
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        if not isinstance(given.get("name"), str):
            unspaced = "; YAML wants a space behind a colon" if any(":" in str(key) for key in given) else ""
            raise UserError(f"{self.kind} {given!r} has no 'name'{unspaced}; known: {', '.join(self)}")
        name = given.pop("name")
        self[name]
        model = self._models[name]
        for key in given:
            if key not in model.model_fields:
                raise UserError(
                    f"unknown option '{key}' of {self.kind} '{name}': {nearest(str(key), model.model_fields)}"
                )
        try:
            checked = model(**given)
        except ValidationError as error:
            first = error.errors()[0]
            place = tuple(str(part) for part in first["loc"])
            field = ".".join(place if first["type"] == "missing" else written(place, given)[0])
            lacks = first["type"] == "missing" and len(first["loc"]) == 1
            wrong = "is missing" if lacks else f"{wanted(first)}, found {said(first['input'])}"
            raise UserError(f"{self.kind} '{name}': option '{field}' {wrong}") from None
        return name, {key: getattr(checked, key) for key in model.model_fields}


def _options_model(kind: str, name: str, piece: Callable[..., Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(piece, eval_str=True).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.annotation is inspect.Parameter.empty:
            raise TypeError(f"{kind} '{name}': option '{parameter.name}' needs a type annotation")
        if parameter.name == "name":
            raise TypeError(f"{kind} '{name}': no option can be called 'name', which is how a recipe names the piece")
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[parameter.name] = (parameter.annotation, default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return create_model(f"{kind}_{name}_options", __config__=config, **fields)


def import_pieces(names: Iterable[str]) -> None:
    """Run Python files (`my_losses.py`) or import modules (`my.losses`), once each, so that they register their pieces.

    Raises `UserError` for a file or module that does not exist.
    """
    for name in names:
        if not name.endswith(".py"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                message = f"imports: no module '{error.name}'; give a Python file or an installed module"
                raise UserError(message) from error
            continue
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"imports: the file '{name}' does not exist")
        key = f"posttrain_imported_{path}"
        if key not in sys.modules:
            spec = importlib.util.spec_from_file_location(key, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[key] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[key]
                raise
