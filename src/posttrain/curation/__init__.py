"""Which data is kept, chosen or made."""

from posttrain.curation import pairs, tool_trajectories
from posttrain.curation.curation import curations

__all__ = ["curations", "pairs", "tool_trajectories"]
