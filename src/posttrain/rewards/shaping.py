"""Rewards of form and length: what is added to being right."""

import math
import re
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


@reward("cosine_length")
def cosine_length(
    attempt: Attempt,
    *,
    longest: Positive,
    unit: Literal["characters", "tokens"] = "characters",
    right: tuple[float, float] = (1.0, 0.1),
    wrong: tuple[float, float] = (-1.0, -0.1),
) -> Score | float:
    """A right answer is worth the more the shorter it is, a wrong one the less: half a cosine over its length.

    v_end + (v_0 - v_end) (1 + cos πx) / 2, x = min(1, length / `longest`); `right` and `wrong` are (v_0, v_end). Right
    is what the verifier gives its full mark. The reward of arXiv 2507.08267 (whose code counts characters: 30,000 or
    48,000), with its numbers.
    """
    if attempt.verdict.error is not None:
        return attempt.verdict
    length = len(attempt.text) if unit == "characters" else attempt.length
    left = (1 + math.cos(math.pi * min(1.0, length / longest))) / 2
    at_0, at_end = right if attempt.verdict.right else wrong
    return at_end + (at_0 - at_end) * left


@reward("answer_before_end")
def answer_before_end(attempt: Attempt, *, answer: str = r"oxed\{.*?\}", end: str = "</think>") -> float:
    """1 where something like `answer` (a regular expression) stands before an `end` of thinking, else 0.

    What such answers are worth is in the thought, so that drawing can stop there. arXiv 2507.08267, its code: the
    first half of `\\boxed` is left out, and an empty box counts.
    """
    return float(re.search(f"(?:{answer}).*?{re.escape(end)}", attempt.text, re.DOTALL) is not None)


@group_reward("relative_length")
def relative_length(
    attempts: List[Attempt], progress: float, *, cap_wrong: bool = False
) -> list[float] | list[Score | float]:
    """0.5 for the shortest attempt at a question to -0.5 for the longest, in proportion; 0 where all are equally long.

    λ of Kimi k1.5 (arXiv 2501.12599): 0.5 - (len - min) / (max - min). With `cap_wrong` a wrong attempt gets min(0, λ),
    which is its whole length reward; without, use it behind a gate, or with a small weight.
    """
    lengths = [attempt.length for attempt in attempts]
    least, most = min(lengths), max(lengths)
    shares = [0.5 - (size - least) / (most - least) if most > least else 0.0 for size in lengths]
    if not cap_wrong:
        return shares
    return [_capped(attempt.verdict, share) for attempt, share in zip(attempts, shares, strict=True)]


def _capped(verdict: Score, share: float) -> Score | float:
    if verdict.error is not None:
        return verdict
    return share if verdict.right else min(0.0, share)
