"""How recipes name what moves: all parameters, or an adapter."""

from collections.abc import Callable

from torch import nn

from posttrain.registry import Registry

adapters: Registry[Callable[..., nn.Module]] = Registry("adapter")
"""Functions `(model, options) -> model with only the adapter's parameters trainable`."""
