"""How an answer is scored."""

from posttrain.rewards.score import Score

__all__ = ["Score"]
