"""What a tokenizer's chat template does: chats to tokens in batches, and how it ends an assistant's turn."""

import json
import re
from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from posttrain.data.sample import Message, assistant, user
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = tuple[dict[str, Any], ...]

TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What templates raise: on purpose (`raise_exception`), or because a turn lacks what they read."""

_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_PROBE = "posttrainprobe"


@dataclass(frozen=True)
class TurnFormat:
    """What a chat template does around the content of an assistant turn.

    `ends`: pairs of an end-of-turn token and the tokens that follow it where the chat ends with that turn.
    `marks`: does the template have `{% generation %}` marks? `inserted`: text that it writes between the generation
    prompt and the content. `tools`: does it read the list of tools?
    """

    ends: frozenset[tuple[int, tuple[int, ...]]]
    marks: bool
    inserted: str
    tools: bool


@dataclass(frozen=True)
class Turns:
    """Turns to render, with or without the generation prompt behind them; `marks` asks for the assistant's tokens."""

    messages: tuple[Message, ...]
    tools: Tools = ()
    generation_prompt: bool = False
    marks: bool = False


@dataclass(frozen=True)
class Tokens:
    """Rendered turns: `ids`, for each whether the template marks it as the assistant's, or the template's `error`."""

    ids: list[int]
    marked: list[int] | None = None
    error: str = ""


def template_text(tokenizer: "PreTrainedTokenizerBase", tools: Tools = ()) -> str:
    """The template that chats with these tools are rendered with. Raises `UserError` if there is none."""
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template: set 'template: none' to train on plain text, "
            "or give the model folder a chat_template.jinja"
        )
    try:
        return str(tokenizer.get_chat_template(tools=list(tools) or None))
    except ValueError as error:
        raise UserError(f"the tokenizer has several chat templates, and none is the default: {error}") from None


def render_text(tokenizer: "PreTrainedTokenizerBase", turns: Turns, options: Mapping[str, Any]) -> str:
    """The text of a chat. Raises one of `TEMPLATE_ERRORS` where the template refuses it."""
    text: str = tokenizer.apply_chat_template(
        list(turns.messages),
        tools=list(turns.tools) or None,
        add_generation_prompt=turns.generation_prompt,
        tokenize=False,
        **options,
    )
    return text


def render_tokens(
    tokenizer: "PreTrainedTokenizerBase", requests: List[Turns], options: Mapping[str, Any]
) -> list[Tokens]:
    """The tokens of each request: those that share tools and flags go through the tokenizer together."""
    groups: dict[tuple[str, bool, bool], list[int]] = {}
    for place, turns in enumerate(requests):
        key = (json.dumps(turns.tools, default=str), turns.generation_prompt, turns.marks)
        groups.setdefault(key, []).append(place)
    rendered: dict[int, Tokens] = {}
    for places in groups.values():
        rendered.update(
            zip(places, _render_group(tokenizer, [requests[place] for place in places], options), strict=True)
        )
    return [rendered[place] for place in range(len(requests))]


def _render_group(tokenizer: "PreTrainedTokenizerBase", group: list[Turns], options: Mapping[str, Any]) -> list[Tokens]:
    first = group[0]
    try:
        batch = tokenizer.apply_chat_template(
            [list(turns.messages) for turns in group],
            tools=list(first.tools) or None,
            add_generation_prompt=first.generation_prompt,
            return_assistant_tokens_mask=first.marks,
            return_dict=True,
            tokenizer_kwargs={"verbose": False},
            **options,
        )
    except TEMPLATE_ERRORS as error:
        if len(group) == 1:
            return [Tokens([], error=f"{type(error).__name__}: {error}")]
        return [tokens for turns in group for tokens in _render_group(tokenizer, [turns], options)]
    marked = batch["assistant_masks"] if first.marks else [None] * len(group)
    return [Tokens(ids, marks) for ids, marks in zip(batch["input_ids"], marked, strict=True)]


def turn_format(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any], tools: Tools = ()) -> TurnFormat:
    """How the template writes and ends a turn, found by rendering a probe. Raises `UserError` without a usable one."""
    template = template_text(tokenizer, tools)
    question = user("question")
    try:
        header = render_text(tokenizer, Turns((question,), tools, generation_prompt=True), options)
        text = render_text(tokenizer, Turns((question, assistant(_PROBE)), tools), options)
    except TEMPLATE_ERRORS as error:
        raise UserError(f"the chat template cannot render a question and its answer: {error}") from None
    before, found, suffix = text.rpartition(_PROBE)
    if not found:
        raise UserError("the chat template does not write the content of an assistant's turn; give another template")
    ids = tokenizer(suffix, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    ends = _cut(ids, next((token for token in ids if token in added or token in tokenizer.all_special_ids), None))
    if not ends:
        # Such a template never ends a turn by itself: only content that brings the end of sequence along can.
        ends = {(tokenizer.eos_token_id, tuple(ids))} if tokenizer.eos_token_id is not None else set()
    # An answer that calls a tool may end in its own way: <|eom_id|> in Llama 3.1, <|call|> in gpt-oss.
    call = _tool_call_suffix(tokenizer, options, tools)
    known = {end for end, _ in ends}.intersection(call)
    last = next((token for token in reversed(call) if token in added and added[token].special), None)
    ends |= _cut(call, known.pop() if known else last)
    inserted = before[len(header) :] if before.startswith(header) else ""
    return TurnFormat(frozenset(ends), bool(_MARK.search(template)), inserted, "tools" in template)


def _cut(ids: list[int], end: int | None) -> set[tuple[int, tuple[int, ...]]]:
    return {(end, tuple(ids[ids.index(end) + 1 :]))} if end is not None else set()


def _tool_call_suffix(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any], tools: Tools) -> list[int]:
    """The tokens behind the arguments of a tool call; none where the template knows no tool calls."""
    call = {"type": "function", "function": {"name": "probe", "arguments": {"argument": _PROBE}}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        text = render_text(tokenizer, Turns((user("question"), turn), tools), options)
    except TEMPLATE_ERRORS:
        return []
    _, found, suffix = text.rpartition(_PROBE)
    ids: list[int] = tokenizer(suffix, add_special_tokens=False)["input_ids"] if found else []
    return ids
