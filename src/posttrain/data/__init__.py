"""Text to tokens to tensors: the first room of the house, which imports none of the others."""

from posttrain.data.sample import Message, Sample, assistant, user
from posttrain.data.sequence import Origin, Sequence

__all__ = ["Message", "Origin", "Sample", "Sequence", "assistant", "user"]
