"""Weights of the tokens that decide which tool is called: the second part of TL-Training (arXiv 2412.15495)."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from collections.abc import Sequence as List
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.rewards.tool_calls import CLOSE, OPEN, MalformedCallError, locate_calls, offered_tools
from posttrain.sources.places import places
from posttrain.sources.transforms import transform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
_BEHIND = 8
"""Characters behind a name that are tokenised with it: the token after the name is a key token where another offered
name goes on there, and tokenizers merge marks."""


@transform("key_tokens")
def key_tokens(
    sequences: List[Sequence], step: Step, *, w_max: Annotated[float, Field(ge=1)] = 9.0, column: str = "weight"
) -> list[Sequence]:
    """Column `weight`: key tokens of tool calls weigh as much as all other tokens of the calls, at most `w_max` each.

    K = the first token of the called name, and the one where it parts from each other offered name that begins alike
    (`key_offsets`); the other tokens of the calls are NK: w = clip(|NK| / |K|, 1, w_max) in K, and 1 elsewhere,
    thoughts and replies included. With `objective: {name: nll, weight_column: weight, reduction: sequences}`
    L = Σ w · nll / Σ w of each sample: PKT of TL-Training. The released code leaves tokens that close a value out of
    NK; the paper, which is followed, does not. Calls are JSON as `rewards.tool_calls` reads them, and the offered
    names are found in the prompt. With several trained turns each has a weight of its own.
    """
    return [_weighted(sequence, step.policy.tokenizer, w_max, column) for sequence in sequences]


def key_offsets(name: List[Any], others: List[List[Any]]) -> list[int]:
    """{0} ∪ {length of the common prefix of `name` and an other one, where they have one}: offsets in tokens.

    Where one is the beginning of the other, that is the token behind the shorter one.
    """
    shared = (_common_prefix(name, other) for other in others if list(other) != list(name))
    return sorted({0, *shared})


def key_weight(keys: int, others: int, w_max: float) -> float:
    """clip(others / keys, 1, w_max): what makes both kinds weigh the same."""
    return min(max(others / keys, 1.0), w_max) if keys else 1.0


def _common_prefix(a: List[Any], b: List[Any]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _weighted(sequence: Sequence, tokenizer: "PreTrainedTokenizerBase", w_max: float, column: str) -> Sequence:
    weights = np.ones(len(sequence), dtype=np.float32)
    for start, stop in _runs(sequence.target):
        prompt = tokenizer.decode(sequence.tokens[:start].tolist())
        keys, calls = _keys(sequence.tokens[start:stop].tolist(), offered_tools(str(prompt)), tokenizer)
        weights[[start + key for key in keys]] = key_weight(len(keys), calls - len(keys), w_max)
    return replace(sequence, columns={**sequence.columns, column: weights})


def _runs(target: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Trained turns as (first token, token behind the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], target, [False]]).astype(np.int8)))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _keys(ids: list[int], offered: list[str], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], int]:
    """The key tokens of an answer, and how many tokens its calls have, marks around them and end of turn included."""
    body = len(ids)
    while body and ids[body - 1] in tokenizer.all_special_ids and tokenizer.decode(ids[body - 1]) != CLOSE:
        body -= 1  # the end of the turn is no part of bare JSON
    text, starts = places(ids[:body], tokenizer)
    try:
        calls = locate_calls(text)
    except MalformedCallError:
        return [], 0
    keys = set()
    for call, start, stop in calls:
        name = re.compile(rf'"name"\s*:\s*"({re.escape(call.name)})"').search(text, start, stop)
        if name and call.name:
            characters = _key_characters(text, start, name.start(1), call.name, offered, tokenizer)
            keys |= {bisect_right(starts, character) - 1 for character in characters}
    if not keys:
        return [], 0
    first = text.find(OPEN)
    begin = bisect_right(starts, calls[0].start if first < 0 else first) - 1
    reply = text.find("<response>", calls[-1].stop)
    return sorted(keys), (len(ids) if reply < 0 else bisect_right(starts, reply) - 1) - begin


def _key_characters(
    text: str, start: int, at: int, name: str, offered: list[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[int]:
    """Where the key tokens of the name at `text[at]` begin. Names are compared as they are written in this call:
    tokenizers may join their ends with the marks around them."""
    before, behind = text[start:at], text[at + len(name) : at + len(name) + _BEHIND]
    alike = [other for other in offered if other != name and other[:1] == name[:1]]
    encoded = tokenizer([before + each + behind for each in (name, *alike)], return_offsets_mapping=True, **_PLAIN)
    own = encoded["offset_mapping"][0]
    first = bisect_right([offset for offset, _ in own], len(before)) - 1
    tokens, *others = ([*ids[first:]] for ids in encoded["input_ids"])
    return [start + own[first + offset][0] for offset in key_offsets(tokens, others)]
