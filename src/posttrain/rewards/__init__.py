"""How an answer is scored."""

from posttrain.rewards import shaping
from posttrain.rewards.reward import Attempt, Reward, build_reward, group_reward, reward, reward_names, rewards
from posttrain.rewards.score import Score

__all__ = ["Attempt", "Reward", "Score", "build_reward", "group_reward", "reward", "reward_names", "rewards", "shaping"]
