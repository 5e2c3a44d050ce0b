"""Rewards that models give: nobody labels anything."""

from collections.abc import Sequence as List

from posttrain.rewards.attempt import Ask, Attempt
from posttrain.rewards.reward import model_reward


@model_reward("log_ratio", models=("model", "base"))
def log_ratio(attempts: List[Attempt], ask: Ask, *, model: str, base: str = "base") -> list[float]:
    """Self-rewarding PPO (arXiv 2510.21090): Σ_t log π_model(y_t) - log π_base(y_t) over the drawn tokens, in nats.

    The end token counts, the prompt does not. A sum, not a mean: dividing by the length would have another optimum.
    `model`: one tuned on demonstrations; `base`: what it was tuned from. Both at temperature 1.
    """
    sequences = [attempt.sequence for attempt in attempts]
    tuned, before = ask(model, sequences, ()), ask(base, sequences, ())
    return [float((a.logprobs - b.logprobs).sum()) for a, b in zip(tuned, before, strict=True)]
