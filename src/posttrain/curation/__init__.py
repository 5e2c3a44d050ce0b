"""Which data is kept, chosen or made."""

from posttrain.curation import first_step, levels, noisy_answers, pairs, scores, thoughts, tool_trajectories
from posttrain.curation.curation import curate, curations, takes_models

__all__ = [
    "curate",
    "curations",
    "first_step",
    "levels",
    "noisy_answers",
    "pairs",
    "scores",
    "takes_models",
    "thoughts",
    "tool_trajectories",
]
