"""When an answer ends: end-of-turn tokens and stop strings."""

from collections.abc import Sequence as List
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from posttrain.generation.engine import Sampling


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> frozenset[int]:
    """Ids that end an answer: the model's and the tokenizer's end of turn, and `sampling.stop_tokens`."""
    ends: set[int] = set(sampling.stop_tokens)
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    for found in (configured, tokenizer.eos_token_id):
        if found is not None:
            ends.update([found] if isinstance(found, int) else found)
    return frozenset(ends)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: List[int]) -> str:
    """Text of `tokens`, special tokens included (tags of thoughts, answers and tools are special in some models)."""
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: List[int], ends: frozenset[int]) -> str:
    """Text of an answer: `tokens` without the end token that closed it."""
    return decode(tokenizer, tokens[:-1] if tokens and tokens[-1] in ends else tokens)


class StopStrings:
    """Do the drawn tokens of one answer end in a stop string?

    Only a token whose own text holds the last character of a stop string can complete it; nothing is decoded for the
    others. Then only as many tokens are decoded, from the end, as make up the longest stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._longest = max(map(len, stops))
        self._may_complete = _holding(tokenizer, {stop[-1] for stop in stops}, vocabulary)

    def completed(self, tokens: List[int]) -> bool:
        """Does the text of `tokens` hold a stop string that the last token completed?"""
        if not self._may_complete[tokens[-1]]:
            return False
        # The last token may bring several characters, the first one of the window may begin inside a character.
        latest = len(decode(self._tokenizer, tokens[-1:]))
        window = self._longest + 4
        while True:
            text = decode(self._tokenizer, tokens[-window:])
            if window >= len(tokens) or len(text) > self._longest + latest + 4:
                return any(stop in text for stop in self._stops)
            window *= 2


def _holding(tokenizer: PreTrainedTokenizerBase, characters: set[str], vocabulary: int) -> npt.NDArray[np.bool_]:
    """`[V]`: may a token add one of `characters`? Tokens that are a part of a character only may."""
    # Decoded after another token: at the start of a text some tokenizers drop a leading space.
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    texts = tokenizer.batch_decode(
        [[*anchor, token] for token in range(vocabulary)],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    wanted = characters | {"\N{REPLACEMENT CHARACTER}"}
    if "a" in wanted:  # the anchor itself
        texts = [text[1:] for text in texts]
    return np.array([any(character in text for character in wanted) for text in texts], dtype=bool)
