"""Pages of one file: their templates, with the style that all share, and how they are written."""

import os
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from posttrain.errors import UserError
from posttrain.reporting import formats


def render(name: str, content: dict[str, Any], package: str = "posttrain.reporting") -> str:
    """The template file `name` of `package` with `content` in it; it extends `page.html` and says its blocks."""
    places = dict.fromkeys((package, "posttrain.reporting"))
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=ChoiceLoader([PackageLoader(place, "") for place in places]),
    )
    environment.filters |= {
        name: getattr(formats, name) for name in ("number", "percent", "points", "duration", "moment")
    }
    return environment.get_template(name).render(**content)


def environment(machine: Any, **more: Any) -> dict[str, str]:
    """What the page says that was run on: a manifest's `machine`, which may be missing or broken, and `more`."""
    found = {key.replace("_", " "): value for key, value in (machine if isinstance(machine, dict) else {}).items()}
    if formats.is_number(memory := found.pop("memory gib", None)):
        found["memory"] = f"{formats.number(memory)} GiB"
    found |= {key.replace("_", " "): value for key, value in more.items()}
    return {key: str(value) for key, value in found.items() if value not in (None, "")}


def write(page: str, path: Path) -> Path:
    """Write `page` to `path` in one go, so that a reader never meets half of one; returns `path`.

    Raises `UserError` when it cannot be written.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        unfinished.write_text(page, encoding="utf-8", errors="replace")
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write the page '{path}': {error.strerror or error}") from error
    return path
