"""Samples to sequences: which template, which turns are trained, and what happens to overlong ones."""

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from posttrain.data.chat_template import TEMPLATE_ERRORS, Turns, render_text, template_text, turn_format
from posttrain.data.sample import Message, Sample
from posttrain.data.sequence import Origin, Sequence
from posttrain.data.turns import NO_TARGET, PREFIX_CHANGES, Chat, MaskedTokens, Refusal, mask_chats
from posttrain.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["chat", "none"]
LossOn = Literal["last", "all"]
Overlong = Literal["drop", "truncate", "error"]

OVERLONG = "overlong"
NOT_A_PAIR = "no preference pair"
NOT_PLAIN = "more than one turn without a template"


@dataclass(frozen=True)
class Rendering:
    """How samples become tokens. Every field is part of the key of a token cache.

    `template`: `chat` uses the tokenizer's chat template, `none` writes prompt and response one behind the other.
    `loss_on`: the last assistant turn is trained, or every one. `max_length` in tokens. `overlong`: what is longer is
    dropped and counted, cut from the right and counted, or an error. `append_eos`: with `none`, the end-of-sequence
    token ends the response and is trained. `template_options` are passed to the template (`enable_thinking: false`).
    """

    max_length: int
    template: Template = "chat"
    loss_on: LossOn = "last"
    overlong: Overlong = "drop"
    append_eos: bool = True
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}; a prompt and an answer have at least 2 tokens")
        for name, value, allowed in (
            ("template", self.template, get_args(Template)),
            ("loss_on", self.loss_on, get_args(LossOn)),
            ("overlong", self.overlong, get_args(Overlong)),
        ):
            if value not in allowed:
                raise UserError(f"{name} is '{value}': {nearest(str(value), allowed)}")


@dataclass(frozen=True)
class Rendered:
    """The sequence of a sample; `truncated` if it was cut at `max_length`."""

    sequence: Sequence
    truncated: bool


def render(sample: Sample, tokenizer: "PreTrainedTokenizerBase", rendering: Rendering) -> Sequence | Refusal:
    """The sequence of a demonstration, its targets exactly what the assistant writes and its end-of-turn tokens.

    It ends with its last target. Returns a `Refusal` rather than guess; raises `UserError` for a tokenizer without a
    usable chat template, and for an overlong sample under `overlong: error`.
    """
    outcome = render_batch([sample], tokenizer, rendering)[0]
    return outcome if isinstance(outcome, Refusal) else outcome.sequence


def render_pair(
    sample: Sample, tokenizer: "PreTrainedTokenizerBase", rendering: Rendering
) -> tuple[Sequence, Sequence] | Refusal:
    """The chosen and the rejected side of a preference pair: the same `group`, and a scalar `chosen` of 1 and 0.

    Only turns of the response are trained: those of the shared prompt say nothing about the preference.
    """
    outcome = render_pairs([sample], tokenizer, rendering)[0]
    return outcome if isinstance(outcome, Refusal) else (outcome[0].sequence, outcome[1].sequence)


def render_batch(
    samples: List[Sample], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering
) -> list[Rendered | Refusal]:
    """`render` for many samples at once, which is much faster."""
    chats = [_chat(sample, sample.response, rendering) for sample in samples]
    masked = _masked(chats, tokenizer, rendering)
    return [_finished(sample, tokens, rendering) for sample, tokens in zip(samples, masked, strict=True)]


def render_pairs(
    samples: List[Sample], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering
) -> list[tuple[Rendered, Rendered] | Refusal]:
    """`render_pair` for many samples at once."""
    sides = [side for sample in samples for side in (sample.response, sample.rejected)]
    twice = [sample for sample in samples for _ in range(2)]
    chats = [_chat(sample, side, rendering, pair=True) for sample, side in zip(twice, sides, strict=True)]
    masked = _masked(chats, tokenizer, rendering)
    outcomes = [
        _finished(sample, tokens, rendering, group=sample.id, scalars={"chosen": 1.0 - place % 2})
        for place, (sample, tokens) in enumerate(zip(twice, masked, strict=True))
    ]
    return [_paired(sample, *outcomes[2 * place : 2 * place + 2]) for place, sample in enumerate(samples)]


def render_prompt(
    sample: Sample, tokenizer: "PreTrainedTokenizerBase", rendering: Rendering, forced: str = ""
) -> npt.NDArray[np.int32]:
    """Tokens `[T]` that an answer is drawn behind: the prompt with the generation prompt, then a `forced` beginning.

    Raises `UserError` where the template refuses the prompt.
    """
    if rendering.template == "none":
        text, lead = _plain_text(sample.prompt), _leading_tokens(tokenizer)
        if text is None:
            raise UserError(f"sample {_where(sample)}: template none takes one turn, found {len(sample.prompt)}")
    else:
        template_text(tokenizer, sample.tools)
        lead, turns = [], Turns(sample.prompt, sample.tools, generation_prompt=True)
        try:
            text = render_text(tokenizer, turns, rendering.template_options)
        except TEMPLATE_ERRORS as error:
            raise UserError(f"sample {_where(sample)}: the chat template refuses the prompt: {error}") from None
    if not forced:
        return np.asarray(lead + tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    prompt, both = tokenizer([text, text + forced], add_special_tokens=False)["input_ids"]
    tokens = _continued(prompt, both, forced, tokenizer)
    if tokens is None:
        raise UserError(f"sample {_where(sample)}: the forced beginning {forced!r} changes the tokens before it")
    return np.asarray(lead + tokens, dtype=np.int32)


def turn_end_tokens(tokenizer: "PreTrainedTokenizerBase", rendering: Rendering) -> frozenset[int]:
    """The tokens that end an answer: those that the template ends a turn with, and the end of sequence."""
    ends = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    if rendering.template == "chat":
        ends |= {end for end, _ in turn_format(tokenizer, rendering.template_options).ends}
    return frozenset(ends)


def template_notes(tokenizer: "PreTrainedTokenizerBase", rendering: Rendering) -> list[str]:
    """What a user should know about the template before training with it."""
    if rendering.template == "none":
        return []
    inserted = turn_format(tokenizer, rendering.template_options).inserted
    if not inserted.strip():
        return []
    return [
        f"the chat template writes {inserted!r} between the generation prompt and each answer, and it is trained as a "
        "part of the answer; see whether an option of the template (template_options) moves it into the prompt"
    ]


# --- from samples to masks and back -----------------------------------------------------------------------------------


def _chat(sample: Sample, response: tuple[Message, ...], rendering: Rendering, pair: bool = False) -> Chat:
    turns = (*sample.prompt, *response)
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"] if response else []
    if pair:
        answers = [place for place in answers if place >= len(sample.prompt)]
    return Chat(turns, tuple(answers if rendering.loss_on == "all" else answers[-1:]), sample.tools)


def _masked(
    chats: List[Chat], tokenizer: "PreTrainedTokenizerBase", rendering: Rendering
) -> list[MaskedTokens | Refusal]:
    if rendering.template == "chat":
        return mask_chats(chats, tokenizer, rendering.template_options)
    return _mask_plain(chats, tokenizer, rendering.append_eos)


def _finished(
    sample: Sample,
    masked: MaskedTokens | Refusal,
    rendering: Rendering,
    group: str = "",
    scalars: Mapping[str, float] | None = None,
) -> Rendered | Refusal:
    if isinstance(masked, Refusal):
        return masked
    length, limit = len(masked.tokens), rendering.max_length
    truncated = length > limit
    if truncated:
        detail = f"{length} tokens, allowed are {limit} (max_length)"
        if rendering.overlong == "error":
            raise UserError(
                f"sample {_where(sample)} has {detail}; raise max_length, or set overlong to drop or truncate"
            )
        if rendering.overlong == "drop":
            return Refusal(OVERLONG, detail)
        if not masked.target[:limit].any():
            first = int(masked.target.argmax())
            return Refusal(NO_TARGET, f"{detail}, and its first trained token is the {first + 1}th: nothing is left")
        limit = int(masked.target[:limit].nonzero()[0][-1]) + 1
    tokens, target, origin = masked.tokens[:limit], masked.target[:limit], masked.origin[:limit]
    return Rendered(Sequence(tokens, target, origin, sample.id, group=group, scalars=scalars or {}), truncated)


def _paired(
    sample: Sample, chosen: Rendered | Refusal, rejected: Rendered | Refusal
) -> tuple[Rendered, Rendered] | Refusal:
    if not sample.response or not sample.rejected:
        return Refusal(NOT_A_PAIR, f"there is no {'rejected' if sample.response else 'chosen'} answer")
    for side, outcome in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(outcome, Refusal):
            return Refusal(outcome.reason, f"{side}: {outcome.detail}")
    assert isinstance(chosen, Rendered)
    assert isinstance(rejected, Rendered)
    return chosen, rejected


def _where(sample: Sample) -> str:
    source, row = sample.meta.get("source"), sample.meta.get("row")
    return f"{sample.id} ({source}, row {row})" if source else sample.id


# --- plain text, without a template -----------------------------------------------------------------------------------


def _mask_plain(
    chats: List[Chat], tokenizer: "PreTrainedTokenizerBase", append_eos: bool
) -> list[MaskedTokens | Refusal]:
    if append_eos and tokenizer.eos_token_id is None:
        raise UserError("append_eos is on, but the tokenizer has no end-of-sequence token; set append_eos: false")
    end = [tokenizer.eos_token_id] if append_eos else []
    lead = _leading_tokens(tokenizer)
    texts = [_plain_texts(chat) for chat in chats]
    flat = [text for pair in texts if pair for text in (pair[0], pair[0] + pair[1])]
    ids = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"] if flat else [])
    outcomes: list[MaskedTokens | Refusal] = []
    for chat, pair in zip(chats, texts, strict=True):
        if pair is None:
            reason, found = (NOT_PLAIN, "takes") if chat.trained else (NO_TARGET, "needs")
            roles = ", ".join(turn["role"] for turn in chat.turns)
            outcomes.append(Refusal(reason, f"template none {found} one prompt and one response (roles here: {roles})"))
            continue
        prompt, both = next(ids), next(ids)
        tokens = _continued(prompt, both, pair[1], tokenizer)
        if tokens is None:
            outcomes.append(Refusal(PREFIX_CHANGES, "prompt and response share a token that cannot be divided"))
            continue
        outcomes.append(_plain_mask(lead + prompt, tokens[len(prompt) :] + end))
    return outcomes


def _plain_mask(prompt: list[int], response: list[int]) -> MaskedTokens | Refusal:
    tokens = np.asarray(prompt + response, dtype=np.int32)
    target = np.arange(len(tokens)) >= max(len(prompt), 1)
    if not target.any():
        return Refusal(NO_TARGET, "nothing comes before the only token")
    return MaskedTokens(tokens, target, np.where(target, Origin.DEMONSTRATION, Origin.PROMPT).astype(np.uint8))


def _plain_texts(chat: Chat) -> tuple[str, str] | None:
    """Prompt and response, where the chat is at most one turn and then one of the assistant."""
    if not chat.trained or chat.trained[0] != len(chat.turns) - 1 or len(chat.turns) > 2:
        return None
    prompt, response = _plain_text(chat.turns[:-1]), _plain_text(chat.turns[-1:])
    return None if prompt is None or response is None else (prompt, response)


def _plain_text(turns: tuple[Message, ...]) -> str | None:
    if not turns:
        return ""
    content = turns[0].get("content")
    return content if len(turns) == 1 and isinstance(content, str) else None


def _leading_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The beginning-of-sequence token, where the tokenizer puts one before a text of its own accord."""
    ids: list[int] = tokenizer("")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _continued(prompt: list[int], both: list[int], text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int] | None:
    """The tokens of the prompt, unchanged, and of the text behind it; None where that cannot be had.

    Where the tokens of the two together merge the last of the prompt with the first of the text, the text is tokenised
    by itself: what follows a prompt when an answer is drawn is not merged with it either.
    """
    if both[: len(prompt)] == prompt:
        return both
    apart: list[int] = prompt + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    same = tokenizer.decode(apart, skip_special_tokens=False) == tokenizer.decode(both, skip_special_tokens=False)
    return apart if same else None
