"""YAML as recipes use it: no key twice, and errors that name the line."""

from typing import Any

import yaml

from posttrain.errors import UserError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is there: ten times as fast."""


def load_yaml(text: str, where: str) -> Any:
    """The content of a YAML text. Raises `UserError` with `where`, the line and what to do."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_repeated_keys(node, where)
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = " ".join(part for part in (error.context, error.problem) if part)
        at = text.splitlines()[mark.line][mark.column :] if mark and mark.line < len(text.splitlines()) else ""
        hint = "; indent with spaces, not tabs" if at.startswith("\t") else ""
        raise UserError(f"{place}: not valid YAML: {problem}{hint}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def yaml_value(text: str) -> Any:
    """What stands behind an `=` on the command line; what is not valid YAML is text."""
    try:
        return yaml.safe_load(text) if text else None
    except (yaml.YAMLError, ValueError):
        return text


def inline(value: Any) -> str:
    """A value as YAML would have it on one line: `{name: cosine, end: 0.05}`."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()


def line_of(text: str, keys: tuple[str, ...]) -> tuple[int | None, int]:
    """The line (from 1) of the deepest key of a path that a valid YAML text holds, and how many keys lead there."""
    node = yaml.compose(text, Loader=yaml.SafeLoader) if text else None
    line: int | None = None
    for depth, key in enumerate(keys):
        if isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
            continue
        found = [(k, v) for k, v in node.value if k.value == key] if isinstance(node, yaml.MappingNode) else []
        if not found:
            return line, depth
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line, len(keys)


def _refuse_repeated_keys(node: Any, where: str) -> None:
    """YAML would silently take the last of several equal keys."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, where)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in lines:
                raise UserError(f"{where}:{line}: key '{key.value}' is there twice, first in line {lines[key.value]}")
            lines[key.value] = line
        _refuse_repeated_keys(value, where)
