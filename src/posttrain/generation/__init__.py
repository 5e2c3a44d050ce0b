"""How tokens are drawn."""

from posttrain.generation.engine import Completion, Engine, Prompt, Sampling, ThinkingRules

__all__ = ["Completion", "Engine", "Prompt", "Sampling", "ThinkingRules"]
