"""Where each optimiser step's sequences come from."""

from posttrain.sources import corruption, endings, hints, key_tokens, segments, targets, uncertain_prefix
from posttrain.sources.demonstrations import Demonstrations
from posttrain.sources.source import Source
from posttrain.sources.transforms import Transformed, build_transform, transform, transforms

__all__ = [
    "Demonstrations",
    "Source",
    "Transformed",
    "build_transform",
    "corruption",
    "endings",
    "hints",
    "key_tokens",
    "segments",
    "targets",
    "transform",
    "transforms",
    "uncertain_prefix",
]
