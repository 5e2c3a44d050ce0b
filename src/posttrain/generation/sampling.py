"""From logits to drawn tokens: filters, inverse-CDF draws, one random stream for each sample."""

import numpy as np
import torch
from torch import Tensor

from posttrain.errors import UserError
from posttrain.generation.engine import Sampling, ThinkingRules

_NUCLEUS_GUESS = 128
"""Tokens that nearly always hold `top_p` of the mass; the whole vocabulary is sorted only when they do not."""


def check(sampling: Sampling) -> None:
    """Raises `UserError` that names the field of `sampling` whose value cannot be drawn with."""
    rules = {
        "max_new_tokens": (sampling.max_new_tokens >= 1, "at least 1"),
        "temperature": (sampling.temperature >= 0, "0 (greedy) or more"),
        "top_k": (sampling.top_k >= 0, "0 (off) or more"),
        "top_p": (0 < sampling.top_p <= 1, "above 0 and at most 1 (off)"),
        "min_p": (0 <= sampling.min_p <= 1, "between 0 (off) and 1"),
        "stop": (all(sampling.stop), "strings of at least one character"),
    }
    for field, (holds, expected) in rules.items():
        if not holds:
            raise UserError(f"sampling.{field} is {getattr(sampling, field)!r}; it must be {expected}")
    if sampling.thinking is not None:
        _check_thinking(sampling.thinking, sampling)


def _check_thinking(thinking: ThinkingRules, sampling: Sampling) -> None:
    rules = {
        "stop": (bool(thinking.stop), "the text that ends thinking"),
        "temperature": (thinking.temperature > 0, "above 0"),
        "budget": (
            thinking.budget is None or 0 <= thinking.budget < sampling.max_new_tokens,
            f"0 or more, and less than max_new_tokens ({sampling.max_new_tokens})",
        ),
        "continuations": (thinking.continuations >= 0, "0 (off) or more"),
        "continuation": (bool(thinking.continuation), "a text of at least one character"),
    }
    for field, (holds, expected) in rules.items():
        if not holds:
            raise UserError(f"thinking.{field} is {getattr(thinking, field)!r}; it must be {expected}")
    if sampling.temperature == 0 and thinking.temperature != 1:
        raise UserError(
            f"thinking.temperature is {thinking.temperature:g}, but at temperature 0 the likeliest token is taken: set "
            "temperature, or use thinking.budget"
        )


def stream(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """The uniforms of one sample, one for each token: counter-based (Philox), keyed by what names the sample."""
    key = np.array([seed % 2**64, (prompt << 32) + sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw(
    logits: Tensor, uniforms: Tensor | None, sampling: Sampling, changed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One token for each row of `logits[R, V]` from `uniforms[R]` in [0, 1) (not read when greedy).

    `changed[R, V]`: logits that are drawn from in place of the policy's own. Returns `tokens[R]`, `logprobs[R]` of the
    untempered policy, and `sampling_logprobs[R]` of the distribution that was drawn from (0 when greedy: all its mass
    is on the drawn token). Float32 throughout.
    """
    logprobs = logits.float().log_softmax(-1)
    if sampling.temperature == 0 or uniforms is None:
        tokens = logprobs.argmax(-1)
        return tokens, _pick(logprobs, tokens), torch.zeros_like(logprobs[:, 0])
    source = logprobs if changed is None else changed.log_softmax(-1)
    candidates, ids = distribution(source, sampling)
    choice = _invert_cdf(candidates, uniforms)
    tokens = choice if ids is None else _pick(ids, choice)
    return tokens, _pick(logprobs, tokens), _pick(candidates, choice)


def distribution(logprobs: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The distribution that is drawn from, given the policy's `logprobs[R, V]` and a temperature above 0.

    Returns log-probs `[R, K]` (-inf where filtered) and the token ids `[R, K]` that they belong to, None when K = V and
    the columns are the ids. Temperature, top-k, top-p, min-p apply in this order, as in transformers. Of tokens that
    tie at the edge of top-k or top-p, as many are kept as the filter asks for.
    """
    scaled = logprobs if sampling.temperature == 1 else (logprobs / sampling.temperature).log_softmax(-1)
    ids: Tensor | None = None
    if 0 < sampling.top_k < scaled.shape[-1]:
        scaled, ids = scaled.topk(sampling.top_k, -1)
        scaled = scaled.log_softmax(-1)
    if sampling.top_p < 1:
        scaled, ids = _nucleus(scaled, ids, sampling.top_p)
    if sampling.min_p > 0:
        peak = scaled.max(-1, keepdim=True).values
        scaled = scaled.masked_fill(scaled < peak + float(np.log(sampling.min_p)), -torch.inf).log_softmax(-1)
    return scaled, ids


def _nucleus(logprobs: Tensor, ids: Tensor | None, top_p: float) -> tuple[Tensor, Tensor | None]:
    """Keep the fewest most likely tokens of each row that hold `top_p` of its mass, and renormalise."""
    if ids is None:
        guess = min(_NUCLEUS_GUESS, logprobs.shape[-1])
        best, ids = logprobs.topk(guess, -1)
        if guess < logprobs.shape[-1] and bool((best.exp().sum(-1) < top_p + 1e-4).any()):
            best, ids = logprobs.sort(-1, descending=True)
        logprobs = best
    mass_before = logprobs.exp().cumsum(-1).roll(1, -1)
    mass_before[:, 0] = 0.0
    return logprobs.masked_fill(mass_before >= top_p, -torch.inf).log_softmax(-1), ids


def _invert_cdf(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """The first column of `[R, K]` whose cumulated probability exceeds `uniforms[R]` of the total."""
    cdf = logprobs.exp().cumsum_(-1)
    total = cdf[:, -1:]
    # Kept below the total, so that rounding can neither leave the columns nor end on one of probability 0.
    threshold = torch.minimum(uniforms.to(cdf)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # Clamped for rows of NaN, which the engine reports: on a GPU an index out of bounds would end the process instead.
    return torch.searchsorted(cdf, threshold, right=True)[:, 0].clamp_(max=cdf.shape[-1] - 1)


def _pick(values: Tensor, columns: Tensor) -> Tensor:
    return values.gather(-1, columns[:, None])[:, 0]
