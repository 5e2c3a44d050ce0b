"""TLDR: right answers are worth less the longer they are, as much less as the level in their prompt says."""

import math
from collections.abc import Sequence as List
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from posttrain.errors import UserError
from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import group_reward
from posttrain.rewards.score import Score

Strength = Annotated[float, Field(ge=0, lt=1)]
STRENGTHS = {"short": 0.9, "medium": 0.5, "long": 0.1}


@group_reward("tldr")
def tldr(
    attempts: List[Attempt],
    progress: float,
    *,
    longest: Annotated[int, Field(ge=1)] | None = None,
    strength: Strength | dict[str, Strength] = STRENGTHS,
    stop: str = "</think>",
    counted_to: int | None = None,
) -> list[Score]:
    """TLDR (arXiv 2505.07961, reconstructed from its abstract): length counts among right answers, and there only.

    - with `longest` L (usually `max_new_tokens`), linear:  r = 1[right] (1 - λ min(1, |y| / L));
    - without, relative:  r = 1[right] (1 - λ σ((|y| - μ) / s)), with mean μ and population deviation s of the lengths
      of the *right* answers to the question; σ is 1/2 where s = 0. (The same form: arXiv 2502.04463.)

    λ is `strength`: one number, or one for each level, which the sample's `meta["level"]` names (curation `levels`). It
    is below 1, so that every right answer beats every wrong one. |y|: drawn tokens, thinking and all; `counted_to`, a
    token's id, counts those up to it. An answer that ran out of tokens, or never wrote `stop` ("" for models that do
    not think), is wrong. Where advantages are divided by the spread of their group, a group of right answers alone
    gives length its full weight at any λ above 0: where levels do not separate, use `{name: group, std: none}`.
    """
    right = [_is_right(attempt, stop) for attempt in attempts]
    sizes = [_size(attempt, counted_to) for attempt in attempts]
    known = np.array([size for size, is_right in zip(sizes, right, strict=True) if is_right], dtype=np.float64)
    found = []
    for attempt, size, is_right in zip(attempts, sizes, right, strict=True):
        share = _relative(size, known) if longest is None else min(1.0, size / longest)
        value = 1 - _strength(attempt, strength) * share if is_right else 0.0
        found.append(Score(value, {"right": float(is_right)}, attempt.verdict.info, attempt.verdict.error))
    return found


def _is_right(attempt: Attempt, stop: str) -> bool:
    return attempt.verdict.right and attempt.finish_reason == "stop" and stop in attempt.text


def _size(attempt: Attempt, counted_to: int | None) -> int:
    if counted_to is None or counted_to not in attempt.tokens:
        return attempt.length
    return int(np.argmax(attempt.tokens == counted_to)) + 1


def _relative(size: int, right: npt.NDArray[np.float64]) -> float:
    """σ of how long an answer is among the right ones."""
    spread = float(right.std()) if len(right) else 0.0
    return 1 / (1 + math.exp(-(size - float(right.mean())) / spread)) if spread > 0 else 0.5


def _strength(attempt: Attempt, strength: float | dict[str, float]) -> float:
    if not isinstance(strength, dict):
        return strength
    level = attempt.sample.meta.get("level")
    if level not in strength:
        raise UserError(
            f"reward 'tldr': the sample's level is {level!r}, and there are {', '.join(strength)}: write levels into "
            "the prompts (curation 'levels'), or give one number as 'strength'"
        )
    return strength[level]
