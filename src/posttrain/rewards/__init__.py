"""How an answer is scored."""

from posttrain.rewards import (
    levels,
    models,
    next_step,
    partial,
    plan_adherence,
    program,
    reason_act,
    screening,
    shaping,
    sql,
    tool_rewards,
    unlabelled,
)
from posttrain.rewards.attempt import Ask, Attempt, Moment, Verify
from posttrain.rewards.reward import (
    Reward,
    build_reward,
    group_reward,
    model_reward,
    reward,
    reward_models,
    reward_names,
    rewards,
)
from posttrain.rewards.score import Score, is_right

__all__ = [
    "Ask",
    "Attempt",
    "Moment",
    "Reward",
    "Score",
    "Verify",
    "build_reward",
    "group_reward",
    "is_right",
    "levels",
    "model_reward",
    "models",
    "next_step",
    "partial",
    "plan_adherence",
    "program",
    "reason_act",
    "reward",
    "reward_models",
    "reward_names",
    "rewards",
    "screening",
    "shaping",
    "sql",
    "tool_rewards",
    "unlabelled",
]
