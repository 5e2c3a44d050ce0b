"""Rewards of form and length: what is added to being right."""

import math
from collections.abc import Sequence as List
from typing import Annotated, Literal

from pydantic import Field

from posttrain.errors import UserError
from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import group_reward, reward
from posttrain.rewards.score import Score

Positive = Annotated[int, Field(ge=1)]


@reward("task")
def task(attempt: Attempt) -> Score:
    """What the verifier of the sample's task says: 1 right, 0 wrong."""
    return attempt.verdict


@reward("finished")
def finished(attempt: Attempt) -> float:
    """1 where the answer came to its end, 0 where it ran out of tokens."""
    return float(attempt.finish_reason == "stop")


@reward("tags")
def tags(attempt: Attempt, *, order: list[str], once: bool = True) -> Score:
    """1 where the text has each pair of tags, `<t>...</t>`, in this order (and each only once); else 0.

    `order`: names such as [think, answer].
    """
    at = 0
    for tag in order:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if once and (attempt.text.count(opening) != 1 or attempt.text.count(closing) != 1):
            return Score(0.0, info={"format": f"'{opening}' and '{closing}' must come once each"})
        start = attempt.text.find(opening, at)
        end = attempt.text.find(closing, start + len(opening))
        if start < 0 or end < 0:
            return Score(0.0, info={"format": f"'{opening}...{closing}' is missing or out of order"})
        at = end + len(closing)
    return Score(1.0)


@reward("overlong")
def overlong(attempt: Attempt, *, longest: Positive, margin: Positive) -> float:
    """DAPO's soft penalty (arXiv 2503.14476): 0 up to `longest` - `margin` tokens, falling to -1 at `longest`.

    L = `longest`, c = `margin`:  (L - c - T) / c; -1 beyond L. The paper: L = 20,480, c = 4,096.
    """
    if margin > longest:
        raise UserError(f"reward 'overlong': margin {margin} is more than longest {longest}")
    return max(-1.0, min(0.0, (longest - margin - attempt.length) / margin))


@reward("length")
def length(
    attempt: Attempt,
    *,
    longest: Positive,
    shape: Literal["linear", "cosine"] = "linear",
    at_0: float = 1.0,
    at_end: float = 0.0,
) -> float:
    """From `at_0` (no tokens) to `at_end` (`longest` tokens and more), in a straight line or half a cosine."""
    share = min(1.0, attempt.length / longest)
    if shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return at_0 + share * (at_end - at_0)


@group_reward("relative_length")
def relative_length(attempts: List[Attempt], progress: float) -> list[float]:
    """0.5 for the shortest attempt at a question to -0.5 for the longest, in proportion; 0 where all are equally long.

    λ of Kimi k1.5 (arXiv 2501.12599): 0.5 - (len - min) / (max - min). Use it behind a gate, or with a small weight.
    """
    lengths = [attempt.length for attempt in attempts]
    least, most = min(lengths), max(lengths)
    return [0.5 - (size - least) / (most - least) if most > least else 0.0 for size in lengths]
