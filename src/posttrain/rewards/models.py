"""Rewards that models give: nobody labels anything."""

from collections.abc import Sequence as List
from typing import Literal

from torch import Tensor

from posttrain.data.scores import REWARDS
from posttrain.data.whole_answer import whole_answer
from posttrain.rewards.attempt import Ask, Attempt
from posttrain.rewards.reward import model_reward
from posttrain.rewards.score import Score


@model_reward("log_ratio", models=("model", "base"))
def log_ratio(
    attempts: List[Attempt],
    ask: Ask,
    *,
    model: str,
    base: str = "base",
    placement: Literal["end", "tokens"] = "end",
    truncated: float | None = None,
) -> list[Score]:
    """Self-rewarding PPO (arXiv 2510.21090): Σ_t log π_model(y_t) - log π_base(y_t) over the drawn tokens, in nats.

    The end token counts, the prompt does not. A sum, not a mean: dividing by the length would have another optimum.
    `model`: one tuned on demonstrations; `base`: what it was tuned from. Both at temperature 1. `placement`: all at the
    end token, or at each of the `tokens` its own increment, which `gae` and `reinforce++` tell apart (the paper rejects
    it for its bias of length). `truncated`: what an answer without an end is worth (None: its log-ratio, as any other).
    Part `end`: the end token's increment alone, which may reward stopping for its own sake.
    """
    sequences = [attempt.sequence for attempt in attempts]
    tuned, before = ask(model, sequences, ()), ask(base, sequences, ())
    return [
        _log_ratio(attempt, (a.logprobs - b.logprobs)[attempt.begun :], placement, truncated)
        for attempt, a, b in zip(attempts, tuned, before, strict=True)
    ]


def _log_ratio(attempt: Attempt, increments: Tensor, placement: str, truncated: float | None) -> Score:
    if attempt.finish_reason == "length":
        if truncated is not None:
            return Score(truncated)
        parts = {}
    else:
        parts = {"end": float(increments[-1])}
    earned = tuple(increments.tolist()) if placement == "tokens" else ()
    return Score(float(increments.sum()), parts, tokens=earned)


@model_reward("learned", models=("model",), judges=True)
def learned(attempts: List[Attempt], ask: Ask, *, model: str) -> list[float]:
    """What a reward model says of the whole answer, its end token included: a number of any size.

    `model`: a train stage with the objective `bradley_terry` or `outcome`, or any sequence classifier with one output
    and the policy's tokenizer. Hold the policy to where it began (`kl_in_reward`, or a term `kl`): it soon writes what
    the model likes and the verifier does not (Gao et al., arXiv 2210.10760).
    """
    found = ask(model, [whole_answer(attempt.sequence) for attempt in attempts], (REWARDS,))
    return [float(scores["rewards"]) for scores in found]
