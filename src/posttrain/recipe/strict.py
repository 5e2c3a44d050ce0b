"""What all models of user-written YAML have in common."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

Piece = str | dict[str, Any]
"""A piece of a room by name, or `{name: ..., option: value}`."""


def name_of(piece: Piece) -> str:
    """The name that a recipe gives a piece by."""
    return piece if isinstance(piece, str) else str(piece["name"])


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def refuse_unread(given: BaseModel, keys: Iterable[str], where: str) -> None:
    """Raises `ValueError` for a key that is not as it is by default, though nothing reads it here."""
    fields = type(given).model_fields
    for key in keys:
        if getattr(given, key) != fields[key].get_default(call_default_factory=True):
            raise ValueError(f"'{key}' has no effect {where}: leave it out")
