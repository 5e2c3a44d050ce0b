"""posttrain: every method between supervised fine-tuning and reinforcement learning, as small pieces of one loop."""

__version__ = "0.1.0"
