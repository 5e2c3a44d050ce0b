"""Pages of one file: their templates, with the style that all share, and how they are written."""

import os
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from posttrain.errors import UserError
from posttrain.reporting import formats


def render(name: str, content: dict[str, Any], package: str = "posttrain.reporting") -> str:
    """The template file `name` of `package` with `content` in it; `style.css` and `curves.js` can be included."""
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
