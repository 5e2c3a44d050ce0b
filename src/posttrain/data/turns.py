"""Where each assistant turn of a chat starts and ends in its tokens: found and checked, never guessed.

A trained turn starts where the generation prompt ends, so that training sees the very tokens that sampling will see,
and ends with its end-of-turn token. Both places are found by rendering the chat up to the turn and up to its end, and
by checking that these tokens begin the tokens of the whole chat. `{% generation %}` marks then narrow the turn further.
"""

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from posttrain.data.chat_template import Tokens, Tools, TurnFormat, Turns, render_tokens, turn_format
from posttrain.data.sample import Message
from posttrain.data.sequence import Origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX_CHANGES = "the token prefix changes when a turn is added"
NOT_ENDED = "turn not ended"
ENDED_TWICE = "end-of-turn token inside the turn"
NO_TARGET = "no trained token"
NO_PROMPT = "nothing comes before the answer"
TEMPLATE_REFUSES = "the chat template refuses the chat"
TEMPLATE_DROPS = "the chat template leaves something out"

THOUGHT_END = "</think>"

_Key = tuple[int, bool]
"""A part of a chat: its first so many turns, and whether the generation prompt follows them."""


@dataclass(frozen=True)
class Refusal:
    """Why a sample is not trained on: `reason` is one of a few that are counted, `detail` says what was found."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Chat:
    """Turns to render with the template, and the indices of the assistant's turns among them that are trained."""

    turns: tuple[Message, ...]
    trained: tuple[int, ...]
    tools: Tools = ()


@dataclass(frozen=True)
class MaskedTokens:
    """`tokens[T]` int32, `target[T]` bool: is it trained, `origin[T]` uint8: who wrote it."""

    tokens: npt.NDArray[np.int32]
    target: npt.NDArray[np.bool_]
    origin: npt.NDArray[np.uint8]


def mask_chats(
    chats: List[Chat], tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]
) -> list[MaskedTokens | Refusal]:
    """Tokens and target mask of each chat, up to its last target, or why there are none.

    The targets are exactly what the assistant writes in the trained turns, and their end-of-turn tokens. Results of
    tools are `Origin.ENVIRONMENT` where the template lets their place be told, else `Origin.PROMPT`. `options` are
    passed to the template. Raises `UserError` where the tokenizer has no usable template.
    """
    formats = {
        bool(tools): turn_format(tokenizer, options, tools)
        for tools in {bool(c.tools): c.tools for c in chats}.values()
    }
    plans = [_parts(chat) for chat in chats]
    requests = []
    for chat, parts in zip(chats, plans, strict=True):
        marks = formats[bool(chat.tools)].marks
        for length, prompt in parts:
            whole = length == len(chat.turns) and not prompt
            requests.append(Turns(chat.turns[:length], chat.tools, prompt, marks and whole))
    rendered = iter(render_tokens(tokenizer, requests, options))
    return [
        _mask(chat, {key: next(rendered) for key in parts}, formats[bool(chat.tools)], tokenizer)
        for chat, parts in zip(chats, plans, strict=True)
    ]


def _parts(chat: Chat) -> list[_Key]:
    """What has to be rendered to find the trained turns and the results of tools."""
    if not chat.trained or 0 in chat.trained:
        return []
    parts: dict[_Key, None] = {(len(chat.turns), False): None}
    for turn in chat.trained:
        parts |= {(turn, True): None, (turn + 1, False): None}
    for start, end in _tool_blocks(chat.turns):
        parts |= {(start, False): None, (end, False): None}
    return list(parts)


def _tool_blocks(turns: tuple[Message, ...]) -> list[tuple[int, int]]:
    """Runs of tool results as (first turn, turn behind the last): templates may write a run as one turn."""
    results = [turn["role"] == "tool" for turn in turns]
    starts = [place for place in range(1, len(turns)) if results[place] and not results[place - 1]]
    return [(start, [*results[start:], False].index(False) + start) for start in starts]


def _mask(
    chat: Chat, parts: Mapping[_Key, Tokens], form: TurnFormat, tokenizer: "PreTrainedTokenizerBase"
) -> MaskedTokens | Refusal:
    if not chat.trained:
        return Refusal(NO_TARGET, "the sample has no assistant turn to learn from")
    if 0 in chat.trained:
        return Refusal(NO_PROMPT, "the chat starts with an assistant turn, and nothing predicts its first token")
    if chat.tools and not form.tools:
        return Refusal(TEMPLATE_DROPS, f"the template never reads the tools, and the chat has {len(chat.tools)}")
    whole = parts[len(chat.turns), False]
    target = np.zeros(len(whole.ids), dtype=np.bool_)
    for turn in chat.trained:
        span = _span(chat, turn, parts, form, tokenizer)
        if isinstance(span, Refusal):
            return span
        if span.stop - span.start < 2:
            fields = ", ".join(sorted(chat.turns[turn]))
            return Refusal(TEMPLATE_DROPS, f"{_name(chat, turn)} is empty but for its end; it has the fields {fields}")
        if _loses_thought(chat.turns[turn], whole.ids[span], tokenizer):
            detail = f"{_name(chat, turn)} has a thought, of which the template writes nothing"
            return Refusal(TEMPLATE_DROPS, f"{detail}: bare answers would be learned")
        target[span] = True if whole.marked is None else np.asarray(whole.marked[span], dtype=np.bool_)
        if not target[span].any():
            return Refusal(NO_TARGET, f"{_name(chat, turn)} has no token inside the template's generation marks")
        if not target[span.stop - 1]:
            return Refusal(
                NOT_ENDED,
                f"the template's generation marks leave out the token that ends {_name(chat, turn)}, "
                f"{_shown(tokenizer, whole.ids[span.stop - 1 : span.stop])}: the model would never learn to stop",
            )
    origin = np.where(target, Origin.DEMONSTRATION, Origin.PROMPT).astype(np.uint8)
    for start, end in _tool_blocks(chat.turns):
        before, behind = parts[start, False], parts[end, False]
        if before.ids == behind.ids and not before.error and not behind.error:
            return Refusal(TEMPLATE_DROPS, f"the template does not write the result of a tool, {_name(chat, start)}")
        if all(part.ids and part.ids == whole.ids[: len(part.ids)] for part in (before, behind)):
            origin[len(before.ids) : len(behind.ids)] = Origin.ENVIRONMENT
    length = int(target.nonzero()[0][-1]) + 1  # what comes behind the last target cannot change a loss
    return MaskedTokens(np.asarray(whole.ids[:length], dtype=np.int32), target[:length], origin[:length])


def _span(
    chat: Chat, turn: int, parts: Mapping[_Key, Tokens], form: TurnFormat, tokenizer: "PreTrainedTokenizerBase"
) -> slice | Refusal:
    """The tokens from behind the generation prompt to the end-of-turn token of a turn, in the whole chat."""
    whole, prompt, alone = parts[len(chat.turns), False], parts[turn, True], parts[turn + 1, False]
    if error := whole.error or prompt.error or alone.error:
        return Refusal(TEMPLATE_REFUSES, error)
    start, ending = len(prompt.ids), {end for end, _ in form.ends} | {tokenizer.eos_token_id}
    if alone.ids[:start] != prompt.ids:
        return Refusal(PREFIX_CHANGES, f"before {_name(chat, turn)}: {_difference(prompt.ids, alone.ids, tokenizer)}")
    end = next((place for place in range(start, len(alone.ids)) if alone.ids[place] in ending), None)
    if end is None:
        return Refusal(
            NOT_ENDED,
            f"no end-of-turn token in {_name(chat, turn)}, which ends with {_shown(tokenizer, alone.ids[start:][-8:])}",
        )
    stop = end + 1
    if whole.ids[:stop] != alone.ids[:stop]:
        detail = _difference(alone.ids[:stop], whole.ids, tokenizer)
        return Refusal(PREFIX_CHANGES, f"{_name(chat, turn)} changes when later turns are added: {detail}")
    if (alone.ids[end], tuple(alone.ids[stop:])) not in form.ends:
        token, rest = _shown(tokenizer, [alone.ids[end]]), _shown(tokenizer, alone.ids[stop : stop + 8])
        return Refusal(ENDED_TWICE, f"the content of {_name(chat, turn)} holds {token}, and goes on with {rest}")
    return slice(start, stop)


def _loses_thought(turn: Message, ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Templates of reasoning models may delete the thought of a turn, the last one's too."""
    content = turn.get("content")
    if not isinstance(content, str) or THOUGHT_END not in content:
        return False
    return THOUGHT_END not in tokenizer.decode(ids, skip_special_tokens=False)


def _difference(part: list[int], whole: list[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    pairs = zip(part, whole, strict=False)
    place = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(part), len(whole)))
    now, then = _shown(tokenizer, part[place : place + 6]), _shown(tokenizer, whole[place : place + 6])
    return f"from token {place} on {now} becomes {then}"


def _shown(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return repr(tokenizer.decode(ids, skip_special_tokens=False))


def _name(chat: Chat, turn: int) -> str:
    return f"turn {turn + 1} of {len(chat.turns)}"
