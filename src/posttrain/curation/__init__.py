"""Which data is kept, chosen or made."""

from posttrain.curation import pairs
from posttrain.curation.curation import curations

__all__ = ["curations", "pairs"]
