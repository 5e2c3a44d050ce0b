"""Numbers about drawn answers: pass@k, majority vote, variety, form, and the likelihood of demonstrations.

`[P]` problems, `n` draws of one problem, `[N]` target tokens of `[S]` sequences.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
SUBSETS = 1_000
UNREADABLE = ("missing", "several", "malformed")
"""Verifiers' reasons (the first word of `info["reason"]`) for an answer of the wrong form, whatever it says."""


def draw_counts(n: int) -> list[int]:
    """The k that pass@k and majority@k are reported for: 1, 2, 4 ... and n itself."""
    return sorted({2**power for power in range(n.bit_length())} | {n})


def pass_at_k(draws: npt.ArrayLike, right: npt.ArrayLike, k: int) -> Array:
    """Chance that at least one of k of a problem's draws is right: 1 - C(n - c, k) / C(n, k), `[P]`.

    `draws[P]` is n, `right[P]` is c. NaN where fewer than k draws are there: they say nothing of k. Unbiased
    (Chen et al. 2021, arXiv 2107.03374, section 2.1); a product of k ratios in [0, 1], so nothing overflows.
    """
    n, c = np.asarray(draws, dtype=np.float64)[..., None], np.asarray(right, dtype=np.float64)[..., None]
    if k < 1:
        raise ValueError(f"pass@k needs k of 1 or more, found {k}")
    if (c < 0).any() or (c > n).any():
        raise ValueError("there are problems with more right answers than draws, or fewer than none")
    drawn = np.arange(k)
    missed = np.clip(n - c - drawn, 0, None) / np.clip(n - drawn, 1, None)
    chance: Array = np.where(n[..., 0] >= k, 1 - missed.prod(axis=-1), np.nan)
    return chance


def majority_at_k(
    answers: Sequence[str | None], values: npt.ArrayLike, k: int, rng: np.random.Generator, *, subsets: int = SUBSETS
) -> float:
    """Expected value of the answer that k of a problem's draws elect (Wang et al. 2022, arXiv 2203.11171).

    `answers[n]` are what was extracted of each draw, in the verifier's canonical form; None does not vote. What the
    vote hands out is the first of the draws that say so, and its value counts; a tie goes to the answer that was drawn
    first; where no draw votes, the first draw is handed out. The mean is over all subsets of k draws where there are
    at most `subsets`, over that many random ones otherwise. NaN where fewer than k draws are there.
    """
    n, scores = len(answers), np.asarray(values, dtype=np.float64)
    if scores.shape != (n,) or k < 1:
        raise ValueError(f"majority@k needs a value for each of {n} answers and k of 1 or more, found k = {k}")
    if n < k:
        return math.nan
    numbers: dict[str, int] = {}
    codes = np.array([-1 if a is None else numbers.setdefault(a, len(numbers)) for a in answers])
    chosen = _subsets(n, k, subsets, rng)
    votes = codes[chosen]
    support = ((votes[:, :, None] == votes[:, None, :]) & (votes >= 0)[:, :, None]).sum(axis=2)
    winner = support.argmax(axis=1)  # the first draw with the most support: this is the tie-break
    return float(scores[chosen[np.arange(len(chosen)), winner]].mean())


def best_at_k(rewards: npt.ArrayLike, values: npt.ArrayLike, k: int) -> float:
    """Expected value of the answer with the highest reward among k of a problem's draws, `rewards[n]`, `values[n]`.

    The mean over all subsets of k draws: the draw of rank i (0 is the best) is the best of C(n - 1 - i, k - 1) of the
    C(n, k). Of equal rewards the one that was drawn first counts. NaN where fewer than k draws are there.
    """
    given, scores = np.asarray(rewards, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if given.shape != scores.shape or given.ndim != 1 or k < 1:
        raise ValueError(f"best@k needs a reward for each of {len(scores)} values and k of 1 or more, found k = {k}")
    n = len(given)
    if n < k:
        return math.nan
    chances = np.array([math.comb(n - 1 - rank, k - 1) / math.comb(n, k) for rank in range(n)])
    return float((chances * scores[np.argsort(-given, kind="stable")]).sum())


def answer_entropy(answers: Sequence[str | None]) -> float:
    """Entropy, in nats, of a problem's extracted answers; None is left out. 0 where all are the same."""
    counts = np.array(list(Counter(a for a in answers if a is not None).values()), dtype=np.float64)
    if len(counts) < 2:
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def distinct_answers(answers: Sequence[str | None]) -> int:
    """How many different answers were extracted; None is left out."""
    return len({a for a in answers if a is not None})


def has_valid_format(parts: Mapping[str, float], info: Mapping[str, Any], right: bool) -> bool:
    """Whether an answer has the asked-for form, right or wrong, by its score's `parts` and `info`.

    By `parts["format"]` where the verifier says it (1 is valid), else by whether `info["reason"]` is one of
    `UNREADABLE`. A right answer is always readable.
    """
    if "format" in parts:
        return parts["format"] >= 1
    reason = str(info.get("reason") or "").lower().replace(":", " ").split()
    return right or not reason or reason[0] not in UNREADABLE


@dataclass(frozen=True)
class LogLikelihood:
    """Mean log-likelihood of target tokens, in nats: over all of them, and `per_sequence[S]` within each sequence."""

    per_token: float
    per_sequence: Array
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(-per_token); infinite where that is too large for a float."""
        return float(np.exp(min(-self.per_token, 709.0))) if self.per_token > -709 else math.inf


def log_likelihood(logprobs: npt.ArrayLike, sequence: npt.ArrayLike) -> LogLikelihood:
    """Mean log-likelihood of demonstrations: `logprobs[N]` of target tokens, `sequence[N]` in 0..S-1 names their row.

    Summed in float64. Raises `ValueError` for no tokens, a sequence without any, or values that are not finite.
    """
    values, index = np.asarray(logprobs, dtype=np.float64), np.asarray(sequence, dtype=np.int64)
    if values.ndim != 1 or values.shape != index.shape or not len(values):
        raise ValueError(f"expected log-probs and sequence numbers [N], found {values.shape} and {index.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} log-probs are not finite")
    counts = np.bincount(index)
    if (counts == 0).any():
        raise ValueError(f"sequence {int(np.argmin(counts))} has no target token")
    sums = np.bincount(index, weights=values)
    return LogLikelihood(float(values.mean()), sums / counts, len(values))


def _subsets(n: int, k: int, limit: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Index sets `[M, k]`, each in drawing order: all C(n, k), or `limit` random ones."""
    if math.comb(n, k) <= limit:
        return np.array(list(combinations(range(n), k)), dtype=np.int64)
    order = rng.permuted(np.broadcast_to(np.arange(n), (limit, n)), axis=1)
    return np.sort(order[:, :k], axis=1)
