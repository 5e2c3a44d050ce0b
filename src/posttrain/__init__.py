"""posttrain: every method between supervised fine-tuning and reinforcement learning, as small pieces of one loop."""

from importlib.metadata import version

__version__ = version("posttrain")
