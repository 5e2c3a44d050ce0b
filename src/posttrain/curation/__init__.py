"""Which data is kept, chosen or made."""

from posttrain.curation import difficulty, first_step, levels, noisy_answers, pairs, scores, thoughts, tool_trajectories
from posttrain.curation.curation import Drawing, Reply, curate, curations, takes_models

__all__ = [
    "Drawing",
    "Reply",
    "curate",
    "curations",
    "difficulty",
    "first_step",
    "levels",
    "noisy_answers",
    "pairs",
    "scores",
    "takes_models",
    "thoughts",
    "tool_trajectories",
]
