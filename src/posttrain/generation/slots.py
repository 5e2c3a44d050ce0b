"""Keys and values of running answers in a fixed pool of slots, and the masks of one decoding step."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from posttrain.attention import PlacelessLayer, additive_masks, unknown_layers
from posttrain.errors import UserError

_BLOCK = 16
"""Lengths are rounded up to this: attention kernels want aligned masks, and fewer shapes occur."""


@dataclass
class _Plan:
    """What all layers of a cache go by. They do not know the cache itself: a cycle would keep its memory until Python
    looks for cycles, which it rarely does."""

    slots: int
    capacity: int
    columns: int = 0
    positions: Tensor | None = None
    rows: Tensor | None = None


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers cache whose rows have their own lengths: `[slots, heads, capacity, dim]` for each layer.

    A forward pass either fills the first rows from their beginning (`prefill` came before it) or adds one token to each
    of the first rows at its own position (`step` came before it) and sees the columns up to the longest of them.
    Columns behind a row's own length hold zeros or leftovers: masks hide them.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self._plan = _Plan(slots, _rounded(capacity))
        super().__init__(layer_class_to_replicate=partial(_SlotLayer, self._plan))

    @property
    def slots(self) -> int:
        """How many rows there are."""
        return self._plan.slots

    @property
    def columns(self) -> int:
        """How many columns the next decoding step sees."""
        return self._plan.columns

    def prefill(self) -> None:
        """The next forward pass brings whole prompts, padded on the right."""
        self._plan.positions = self._plan.rows = None

    def step(self, positions: Tensor, longest: int) -> None:
        """The next forward pass brings one token for each of the first rows, to stand at `positions[R]` < `longest`."""
        plan = self._plan
        plan.positions = positions
        plan.rows = torch.arange(len(positions), device=positions.device)
        plan.columns = _rounded(longest)
        if plan.columns > plan.capacity:
            self._grow(max(plan.columns, _rounded(plan.capacity * 3 // 2)))

    def _grow(self, capacity: int) -> None:
        self._plan.capacity = capacity
        for layer in self.layers:
            layer.grow()

    def copy_rows(self, source: "SlotCache", source_rows: Tensor, rows: Tensor, length: int) -> None:
        """Copy the first `length` columns of rows of `source` to `rows` of this cache (both `[R]` int64)."""
        if _rounded(length) > self._plan.capacity:
            self._grow(_rounded(length))
        for index, layer in enumerate(source.layers):
            if index == len(self.layers):
                self.layers.append(_SlotLayer(self._plan))
            self.layers[index].copy_rows(layer, source_rows, rows, length)


class _SlotLayer(PlacelessLayer):
    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.plan = plan

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, because a masked column that holds NaN would still spoil the sum over the values.
        self.keys, self.values = (
            states.new_zeros(self.plan.slots, states.shape[1], self.plan.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.plan
        count, length = key_states.shape[0], key_states.shape[2]
        if plan.positions is None:
            self.keys[:count, :, :length] = key_states
            self.values[:count, :, :length] = value_states
            return key_states, value_states
        self.keys[plan.rows, :, plan.positions] = key_states[:, :, 0]
        self.values[plan.rows, :, plan.positions] = value_states[:, :, 0]
        return self.keys[:count, :, : plan.columns], self.values[:count, :, : plan.columns]

    def copy_rows(self, source: "_SlotLayer", source_rows: Tensor, rows: Tensor, length: int) -> None:
        if not source.is_initialized:
            return
        if not self.is_initialized:
            self.lazy_initialization(source.keys, source.values)
        self.keys[rows, :, :length] = source.keys[source_rows, :, :length]
        self.values[rows, :, :length] = source.values[source_rows, :, :length]

    def grow(self) -> None:
        if self.is_initialized:
            keys, values = self.keys, self.values
            self.lazy_initialization(keys, values)
            self.keys[:, :, : keys.shape[2]] = keys
            self.values[:, :, : values.shape[2]] = values


class StepMasks:
    """Attention masks of one decoding step, in the shape that the model's own forward expects."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        """Raises `UserError` for models whose layers keep something else than keys and values of past tokens."""
        if strange := unknown_layers(config):
            raise UserError(
                f"the in-process engine cannot run '{config.model_type}' models: their layers are of type "
                f"{', '.join(strange)}, and it knows full_attention and sliding_attention; "
                "serve the model and use the server engine"
            )
        self._config, self._dtype = config, dtype

    def __call__(self, positions: Tensor, columns: int) -> Tensor | dict[str, Tensor]:
        """Additive masks `[R, 1, 1, columns]`: row r sees the columns up to `positions[r]`, or its window of them."""
        column = torch.arange(columns, device=positions.device)
        return additive_masks(self._config, column, positions[:, None, None, None], self._dtype)


def _rounded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK
