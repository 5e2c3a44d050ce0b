"""Which data is kept, chosen or made."""

from posttrain.curation import (
    difficulty,
    first_step,
    levels,
    noisy_answers,
    paired_answers,
    pairs,
    plans,
    scores,
    self_judge,
    thoughts,
    tool_trajectories,
    traces,
)
from posttrain.curation.curation import FINAL_ANSWER, UNSCORED, Drawing, Reply, curate, curations, takes_models
from posttrain.curation.paired_answers import pair_numbers

__all__ = [
    "FINAL_ANSWER",
    "UNSCORED",
    "Drawing",
    "Reply",
    "curate",
    "curations",
    "difficulty",
    "first_step",
    "levels",
    "noisy_answers",
    "pair_numbers",
    "paired_answers",
    "pairs",
    "plans",
    "scores",
    "self_judge",
    "takes_models",
    "thoughts",
    "tool_trajectories",
    "traces",
]
