"""The shapes that rows of post-training data come in, each a function from a row to a `Sample`.

Rows are checked here, before anything loads: a bad one raises `RowError`, and the reader adds the file and the line.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.data.sample import Message, Sample, assistant, user
from posttrain.errors import UserError, nearest

Row = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class RowError(Exception):
    """What is wrong with one row: the field, what was found, what is allowed."""


@dataclass(frozen=True)
class RowShape:
    """One shape: `required` columns must be in every row, `optional` ones are read where they are."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Row], Sample]


def read_row(row: Row, shape: str) -> Sample:
    """The sample in one row of a shape. Raises `RowError`."""
    for column in SHAPES[shape].required:
        if row.get(column) is None:
            hint = nearest(column, row) if row else "the row is empty"
            raise RowError(
                f"column '{column}' is missing (columns here: {', '.join(row)}); {hint} "
                f"Rename with columns: {{<their name>: {column}}}, or choose another shape"
            )
    return SHAPES[shape].read(row)


def read_scalars(row: Row, names: Iterable[str]) -> dict[str, float]:
    """The numbers in these columns of a row. Raises `RowError`."""
    values: dict[str, float] = {}
    for name in names:
        if row.get(name) is None:
            raise RowError(f"column '{name}', named in scalars, is not here: {nearest(name, row)}")
        values[name] = _number(row[name], name)
    return values


def detect_shape(columns: Iterable[str]) -> str:
    """The one shape whose columns are all there. Raises `RowError` when none is, or several are."""
    found = set(columns)
    fitting = [name for name, shape in SHAPES.items() if found.issuperset(_TELLING.get(name, shape.required))]
    if len(fitting) > 1:
        raise RowError(f"the columns fit several shapes: {', '.join(fitting)}; say which with shape: <name>")
    if fitting:
        return fitting[0]
    if "prompt" in found:
        return "sample"
    shapes = "; ".join(f"{name}: {', '.join(shape.required)}" for name, shape in SHAPES.items())
    raise RowError(
        f"columns {', '.join(sorted(found)) or '(none)'} fit no known shape ({shapes}); "
        "rename with columns: {<their name>: <our name>}"
    )


def check_shape(shape: str) -> None:
    """Raises `UserError` for a shape that does not exist."""
    if shape != "auto" and shape not in SHAPES:
        raise UserError(f"unknown shape '{shape}': {nearest(shape, ['auto', *SHAPES])}")


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises `UserError` for a renaming to a column that no shape reads, or of two columns to one."""
    known = {column for shape in SHAPES.values() for column in (*shape.required, *shape.optional)}
    for theirs, ours in columns.items():
        if ours not in known:
            hint = f"turn it round, {{{ours}: {theirs}}}" if theirs in known else nearest(ours, known)
            raise UserError(f"columns: '{theirs}' is renamed to '{ours}', which no shape reads: {hint}")
    if len(set(columns.values())) < len(columns):
        raise UserError(f"columns: two columns are renamed to the same name: {dict(columns)}")


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row under our names; a renamed column takes the place of one that had our name already."""
    for theirs in columns:
        if theirs not in row:
            raise RowError(f"column '{theirs}', named in columns, is not here: {nearest(theirs, row)}")
    kept = {key: value for key, value in row.items() if key not in columns}
    return {**kept, **{ours: row[theirs] for theirs, ours in columns.items()}}


def found(value: object) -> str:
    """The kind of a value and how it begins, for an error message."""
    kinds = {str: "text", dict: "an object", list: "a list", bool: "true/false", int: "a number", float: "a number"}
    text = repr(value)
    return f"{kinds.get(type(value), type(value).__name__)} {text if len(text) <= 60 else text[:57] + '...'}"


# --- the shapes -----------------------------------------------------------------------------------------------------


def _sample(row: Row) -> Sample:
    prompt = _turns_or_text(row, "prompt", "user") if row["prompt"] != [] else ()
    response = _response(row, "response") if row.get("response") else ()
    rejected = _response(row, "rejected") if row.get("rejected") else ()
    if not prompt and not response:
        raise RowError("'prompt' is empty, and there is no 'response'")
    task, meta = row.get("task") or "", row.get("meta") or {}
    if not isinstance(task, str):
        raise RowError(f"'task' is {found(task)}; it has to be the name of a task")
    if not isinstance(meta, Mapping):
        raise RowError(f"'meta' is {found(meta)}; it has to be an object")
    scalars = row.get("scalars") or {}
    if not isinstance(scalars, Mapping):
        raise RowError(f"'scalars' is {found(scalars)}; it has to be an object of numbers")
    numbers = {name: _number(value, f"scalars.{name}") for name, value in scalars.items() if value is not None}
    return Sample(prompt, response, rejected, _answer(row), task, _tools(row), meta=dict(meta), scalars=numbers)


def _messages(row: Row) -> Sample:
    turns = _turns(row["messages"], "messages")
    return _cut_before_last_assistant(row, turns, "messages", "A prompt without an answer goes into a 'prompt' column")


def _completion(row: Row) -> Sample:
    prompt = _turns_or_text(row, "prompt", "user")
    return Sample(prompt, _response(row, "completion"), answer=_answer(row), tools=_tools(row))


def _preference(row: Row) -> Sample:
    chosen = _turns_or_text(row, "chosen", "assistant")
    rejected = _turns_or_text(row, "rejected", "assistant")
    prompt: tuple[Message, ...] = ()
    if row.get("prompt") is not None:
        prompt = _turns_or_text(row, "prompt", "user")
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        shared = _shared_turns(chosen, rejected)
        if prompt and chosen[:shared][-len(prompt) :] != prompt:
            raise RowError(
                "'chosen' is a whole conversation, but it does not hold the turns of 'prompt' before its answer"
            )
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif not prompt:
        raise RowError("column 'prompt' is missing, and 'chosen' and 'rejected' are not whole conversations either")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[0]["role"] != "assistant":
            raise RowError(
                f"'{name}' differs from the other side at a turn of '{turns[0]['role']}', not of 'assistant'"
            )
    return Sample(prompt, chosen, rejected, tools=_tools(row))


def _alpaca(row: Row) -> Sample:
    turns = [{"role": "system", "content": _text(row, "system")}] if row.get("system") else []
    for number, pair in enumerate(row.get("history") or ()):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise RowError(f"'history[{number}]' is {found(pair)}; it has to be a list [question, answer]")
        turns += [user(pair[0]), assistant(pair[1])]
    question = _text(row, "instruction")
    if row.get("input"):
        question += "\n" + _text(row, "input")
    return Sample((*turns, user(question)), (assistant(_text(row, "output")),))


def _sharegpt(row: Row) -> Sample:
    turns = [{"role": "system", "content": _text(row, "system")}] if row.get("system") else []
    for number, item in enumerate(_list(row["conversations"], "conversations")):
        field = f"conversations[{number}]"
        if not isinstance(item, Mapping) or "from" not in item or "value" not in item:
            raise RowError(f"'{field}' is {found(item)}; every turn is an object with 'from' and 'value'")
        role = SHAREGPT_ROLES.get(str(item["from"]))
        if role is None:
            raise RowError(f"'{field}.from' is '{item['from']}'; allowed: {', '.join(SHAREGPT_ROLES)}")
        turns.append(_turn({"role": role, "content": item["value"]}, field, content="value"))
    return _cut_before_last_assistant(row, tuple(turns), "conversations", "")


def _question_answer(row: Row) -> Sample:
    text = _text(row, "answer")
    final = text.rpartition("####")[2].strip() if "####" in text else None
    return Sample((user(_text(row, "question")),), (assistant(text),), answer=final)


SHAPES: dict[str, RowShape] = {
    "sample": RowShape(("prompt",), ("response", "rejected", "answer", "task", "tools", "meta", "scalars"), _sample),
    "messages": RowShape(("messages",), ("tools", "answer"), _messages),
    "completion": RowShape(("prompt", "completion"), ("tools", "answer"), _completion),
    "preference": RowShape(("chosen", "rejected"), ("prompt", "tools"), _preference),
    "alpaca": RowShape(("instruction", "output"), ("input", "system", "history"), _alpaca),
    "sharegpt": RowShape(("conversations",), ("system", "tools"), _sharegpt),
    "question_answer": RowShape(("question", "answer"), (), _question_answer),
}

_TELLING = {"sample": ("prompt", "response")}
"""Columns that tell a shape where its required ones do not: a lone `prompt` says too little."""


# --- fields ---------------------------------------------------------------------------------------------------------


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise RowError(f"'{field}' is {found(value)}; it has to be text")
    if not value.strip():
        raise RowError(f"'{field}' is empty")
    return value


def _number(value: object, field: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RowError(f"'{field}' is {found(value)}; it has to be a number") from None
    if not math.isfinite(number):
        raise RowError(f"'{field}' is {number}; it has to be a finite number")
    return number


def _list(value: object, field: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # CSV and some Parquet files hold lists as JSON text
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowError(f"'{field}' begins like a JSON list, but is none: {error}") from None
    if not isinstance(value, list | tuple):
        raise RowError(f"'{field}' is {found(value)}; it has to be a list")
    if not value:
        raise RowError(f"'{field}' is an empty list")
    return list(value)


def _turns(value: object, field: str) -> tuple[Message, ...]:
    return tuple(_turn(item, f"{field}[{number}]") for number, item in enumerate(_list(value, field)))


def _turn(value: object, field: str, content: str = "content") -> Message:
    if not isinstance(value, Mapping) or "role" not in value:
        raise RowError(f"'{field}' is {found(value)}; every turn is an object with 'role' and 'content'")
    message = {key: item for key, item in value.items() if item is not None}
    role, text = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RowError(f"'{field}.role' is {found(role)}; allowed: {', '.join(ROLES)}")
    if text is not None and not isinstance(text, str) and not _is_blocks(text):
        raise RowError(f"'{field}.{content}' is {found(text)}; it has to be text, or a list of objects with 'type'")
    may_be_empty = role == "tool" or bool(message.get("tool_calls"))
    if not may_be_empty and (not text or (isinstance(text, str) and not text.strip())):
        raise RowError(f"'{field}.{content}' of role '{role}' is {'empty' if 'content' in message else 'missing'}")
    return message


def _is_blocks(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(block, Mapping) and "type" in block for block in value)


def _turns_or_text(row: Row, field: str, role: str) -> tuple[Message, ...]:
    value = row.get(field)
    if isinstance(value, list | tuple):
        return _turns(value, field)
    if not isinstance(value, str):
        raise RowError(f"'{field}' is {found(value)}; it has to be text or a list of turns")
    return ({"role": role, "content": _text(row, field)},)


def _response(row: Row, field: str) -> tuple[Message, ...]:
    turns = _turns_or_text(row, field, "assistant")
    if turns[0]["role"] != "assistant":
        raise RowError(f"'{field}' starts with a turn of '{turns[0]['role']}'; it has to start with one of 'assistant'")
    return turns


def _cut_before_last_assistant(row: Row, turns: tuple[Message, ...], field: str, hint: str) -> Sample:
    places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not places:
        roles = ", ".join(turn["role"] for turn in turns)
        raise RowError(f"'{field}' has no turn of 'assistant' (roles: {roles}), so nothing to learn. {hint}".rstrip())
    return Sample(turns[: places[-1]], turns[places[-1] :], answer=_answer(row), tools=_tools(row))


def _shared_turns(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    longest = min(len(chosen), len(rejected)) - 1
    return next((place for place in range(longest) if chosen[place] != rejected[place]), longest)


def _answer(row: Row) -> str | None:
    value = row.get("answer")
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"'answer' is {found(value)}; it has to be text or a number")
    return str(value)


def _tools(row: Row) -> tuple[dict[str, Any], ...]:
    if not row.get("tools"):
        return ()
    tools = _list(row["tools"], "tools")
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RowError(f"'tools[{number}]' is {found(tool)}; it has to be a JSON schema of a function")
    return tuple(dict(tool) for tool in tools)
