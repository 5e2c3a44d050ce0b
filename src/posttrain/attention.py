"""Attention to keys and values that a caller keeps by itself: cache layers that know no places, and masks that do."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin


class PlacelessLayer(CacheLayerMixin):  # type: ignore[misc]
    """A cache layer that leaves it to masks which token stands where; subclasses say what is kept (`update`)."""

    is_sliding = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of what a model's own masks would be made of, if it were given none."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """0: the positions come with the tokens."""
        return 0

    def get_max_length(self) -> int:
        """-1: no bound."""
        return -1


def unknown_layers(config: Any) -> list[str]:
    """Kinds of a model's layers that look at something else than past tokens or a window of them."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    return sorted(kinds | ({"chunked_attention"} if getattr(config, "attention_chunk_size", None) else set()))


def additive_masks(config: Any, column: Tensor, query: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Masks in the shape that a model's own forward expects: one, or one of each kind of its layers.

    The token at position `query` sees keys at positions `column` up to its own, or its window of them; a mask has the
    shape that the two are broadcast to.
    """
    layer_types = getattr(config, "layer_types", None)
    window: int = getattr(config, "sliding_window", None) or 0
    default = "sliding_attention" if window else "full_attention"
    masks: dict[str, Tensor] = {}
    for kind in set(layer_types or [default]):
        hidden = column > query
        if kind == "sliding_attention":
            hidden |= column <= query - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=column.device)
        masks[kind] = mask.masked_fill_(hidden, torch.finfo(dtype).min)
    return masks if layer_types is not None else masks[default]
