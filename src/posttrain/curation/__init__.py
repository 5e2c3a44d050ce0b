"""Which data is kept, chosen or made."""

from posttrain.curation import pairs, scores, tool_trajectories
from posttrain.curation.curation import curate, curations, takes_models

__all__ = ["curate", "curations", "pairs", "scores", "takes_models", "tool_trajectories"]
