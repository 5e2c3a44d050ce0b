"""Shared prefixes are read once: keys and values that many rows go on from, with one backward pass for all of them."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from posttrain.attention import PlacelessLayer, additive_masks, unknown_layers
from posttrain.data.batch import Rows
from posttrain.data.prefixes import Continued, Prefixes
from posttrain.policy.loading import bare_model, evaluating, probe_tokens


class PrefixReading:
    """Keys and values `[G, H, P, D]` of every layer, in turn.

    Where gradients are enabled, rows go on from leaves that collect the gradients of all micro-batches; `backward`
    passes them on through the graph of the prefixes, which stands until then.
    """

    def __init__(self, body: Any, input_ids: Tensor) -> None:
        cache = _Cache()
        body(input_ids=input_ids, past_key_values=cache, use_cache=True)
        self._made = [states for layer in cache.layers for states in (layer.keys, layer.values) if states is not None]
        self.states = self._made
        if torch.is_grad_enabled():
            self.states = [states.detach().requires_grad_(states.requires_grad) for states in self._made]

    def backward(self) -> None:
        """Pass the collected gradients on to the weights; the graph is gone then."""
        pairs = [(made, leaf.grad) for made, leaf in zip(self._made, self.states, strict=True) if leaf.grad is not None]
        self._made = self.states = []
        if pairs:
            torch.autograd.backward([made for made, _ in pairs], [gradient for _, gradient in pairs])


def continued_states(body: Any, rows: Rows, continued: Continued, reader: object) -> Tensor:
    """`[R, L, d]`: the last hidden states of rows that go on from prefixes. `reader`: whose reading of them it is."""
    prefixes, key = continued.prefixes, (reader, torch.is_grad_enabled())
    if key not in prefixes.readings:
        prefixes.readings[key] = PrefixReading(body, prefixes.input_ids.to(rows.input_ids.device))
    reading = prefixes.readings[key]
    assert isinstance(reading, PrefixReading)
    width = prefixes.input_ids.shape[1]
    hidden: Tensor = body(
        input_ids=rows.input_ids,
        position_ids=rows.position_ids,
        attention_mask=_masks(body.config, continued.length, width, rows.input_ids.shape[1], reading.states[0].dtype),
        past_key_values=_Cache([states[continued.row] for states in reading.states]),
        use_cache=True,
    ).last_hidden_state
    return hidden


@torch.no_grad()
def reads_prefixes(model: Any) -> bool:
    """Can prefixes be read once with this model? Only where its states come out as in a plain pass.

    Not with gradient checkpointing (which keeps no keys and values), not where the body was compiled, and not with
    layers that look at something else than past tokens or a window of them.
    """
    body = bare_model(model).base_model
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in body.modules())
    if checkpointed or getattr(body, "_compiled_call_impl", None) is not None or unknown_layers(body.config):
        return False
    tokens = probe_tokens(model)
    length = torch.tensor([3], device=tokens.device)
    prefixes = Prefixes(tokens[:, :5], {})
    rest = tokens[:, 3:]
    rows = Rows(rest, length[:, None] + torch.arange(rest.shape[1], device=tokens.device))
    continued = Continued(prefixes, torch.zeros_like(length), length)
    with evaluating(model):
        expected = body(input_ids=tokens, use_cache=False).last_hidden_state[:, 3:]
        try:
            found = continued_states(body, rows, continued, model)
        except Exception:  # whatever an unknown architecture makes of keys and values that it is given
            return False
    exact = expected.dtype == torch.float32 and not torch.is_autocast_enabled(tokens.device.type)
    return bool((found - expected).abs().max() <= (1e-4 if exact else 0.05) * expected.abs().max())


class _Cache(Cache):  # type: ignore[misc]
    """`before`: keys and values of every layer, in turn, that stand before those of the pass; nothing: it begins."""

    def __init__(self, before: list[Tensor] | None = None) -> None:
        super().__init__(layer_class_to_replicate=_Layer)
        if before is not None:
            self.layers = [_Layer(*pair) for pair in zip(before[::2], before[1::2], strict=True)]


class _Layer(PlacelessLayer):
    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()
        self.keys, self.values = keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states, value_states

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)


def _masks(config: Any, length: Tensor, width: int, rest: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Additive masks `[R, 1, L, P + L]`: each row sees its own part of the prefix and its own past, or a window."""
    own = length[:, None] + torch.arange(rest, device=length.device)
    before = torch.arange(width, device=length.device).expand(len(length), width)
    behind_all = torch.iinfo(length.dtype).max  # columns of longer prefixes and of padding
    column = torch.cat([before.masked_fill(before >= length[:, None], behind_all), own], 1)[:, None, None]
    return additive_masks(config, column, own[:, None, :, None], dtype)
