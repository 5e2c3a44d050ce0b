"""Files of a run folder, written whole or not at all."""

from posttrain.errors import UserError
from posttrain.stages.context import Context


def write_atomically(context: Context, name: str, text: str) -> None:
    """Write a file of the run folder, whole or not at all. Raises `UserError` when it cannot be written."""
    path = context.folder / name
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
