"""Where tokens stand in the text that they are."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def places(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[int]]:
    """The text of tokens, special ones included, and the character that each begins at."""
    text = str(tokenizer.decode(ids))
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    if encoded["input_ids"] == ids:
        return text, [start for start, _ in encoded["offset_mapping"]]
    return text, [len(tokenizer.decode(ids[:count])) for count in range(len(ids))]
