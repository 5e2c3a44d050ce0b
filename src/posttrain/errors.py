"""The one exception that is the user's to mend, and the words that its messages are made of."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Bad input, found before compute was spent.

    The message names the thing, what was found, what would be right and what to do. The command line prints it
    without a traceback and exits with 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that helps whoever mistyped `name`: the closest known name, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names) or 'none'}"


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
    "too_long": "has to have {max_length} or fewer items",
    "missing": "has to have more items",
    "tuple_type": "has to be a list",
}
"""pydantic's kinds of errors in our words; the others are said in pydantic's."""


def wanted(error: Mapping[str, Any]) -> str:
    """What one of pydantic's errors asks for: `has to be 1 or less`."""
    if error["type"] in _WANTED:
        limits = {key: f"{value:g}" for key, value in error.get("ctx", {}).items() if isinstance(value, int | float)}
        return _WANTED[error["type"]].format(**limits)
    if error["type"] == "literal_error":
        return f"has to be {error['ctx']['expected']}"
    return str(error["msg"][0].lower() + error["msg"][1:]).replace("input should be", "has to be")


def said(value: Any) -> str:
    """A value as YAML (and JSON) would write it."""
    text = "nothing" if value is None else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def written(keys: tuple[str, ...], content: Any) -> tuple[tuple[str, ...], Any]:
    """The keys of one of pydantic's paths that the content holds, and what stands there.

    Left out are keys that it lacks: pydantic's names for the types that it tried.
    """
    node, found = content, []
    for key in keys:
        if isinstance(node, Mapping) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            continue
        found.append(key)
    return tuple(found), node
