"""Where each optimiser step's sequences come from."""

from posttrain.sources.demonstrations import Demonstrations
from posttrain.sources.source import Source

__all__ = ["Demonstrations", "Source"]
