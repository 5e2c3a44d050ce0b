"""`TokenScores`: what a policy says of the target tokens, and the quantities that may be asked for (`Need`).

A `Need` is a function of one chunk of logits. The policy calls it inside the chunk, so that only its `[n]`-sized
result leaves and no `[N, V]` tensor exists. An objective that wants something new defines its own `Need` beside its
loss.
Everything is computed in float32 from log-softmax.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Some target tokens inside the head: `logits[n, V]` float32 and `tokens[n]`.

    `reference_logits[n, V]` are there for a need that declares `reference`. `key[n]` names each token and `seed` the
    step, for a need that draws samples (see `uniforms`). The first `words` of the vocabulary are tokens (None: all);
    behind them stand rows that models have to make their number round, which are never to be drawn.
    """

    logits: Tensor
    tokens: Tensor
    key: Tensor
    reference_logits: Tensor | None = None
    seed: int = 0
    words: int | None = None

    @cached_property
    def log_softmax(self) -> Tensor:
        """`[n, V]`, with a graph where the logits have one, even if a need without gradient is the first to ask.

        Finite also where a logit is -inf, so that p · log p is 0 there and not NaN.
        """
        with torch.set_grad_enabled(self.logits.requires_grad):
            return _finite(torch.log_softmax(self.logits, -1))

    @cached_property
    def reference_log_softmax(self) -> Tensor:
        """`[n, V]` of the reference model."""
        if self.reference_logits is None:
            raise ValueError("this quantity needs reference logits, but its Need does not declare reference=True")
        return _finite(torch.log_softmax(self.reference_logits, -1))

    def uniforms(self, count: int) -> Tensor:
        """`[n, count]` numbers in [0, 1) for each token: see `uniforms`."""
        return uniforms(self.key, self.seed, count)


def uniforms(key: Tensor, seed: int, count: int) -> Tensor:
    """`[n, count]` numbers in [0, 1) that depend on (seed, `key[n]`, draw) alone: not on how a step was cut, and the
    same when a chunk is computed again for the backward pass. (SplitMix64, Steele et al. 2014.)
    """
    draws = torch.arange(count, device=key.device) + seed * 7_046_029_254_386_353_131 % 2**62
    state = (key[:, None] * -7_046_029_254_386_353_131) + draws[None, :] * -8_663_945_395_140_668_459
    for shift, factor in ((30, -4_658_895_280_553_007_687), (27, -7_723_592_293_110_705_685)):
        state = (state ^ ((state >> shift) & (2 ** (64 - shift) - 1))) * factor
    state = state ^ ((state >> 31) & (2**33 - 1))
    return ((state >> 11) & (2**53 - 1)).double() * 2.0**-53


def _finite(logprobs: Tensor) -> Tensor:
    return logprobs.clamp(min=torch.finfo(logprobs.dtype).min)


@dataclass(frozen=True)
class Need:
    """A per-token quantity by name. `differentiable`: gradients flow through it (else it is computed without graph).

    `function` None: it is no function of the logits, but what the policy's critic, or its reward head, says.
    """

    name: str
    function: Callable[[Chunk], Tensor] | None
    reference: bool = False
    differentiable: bool = True


@dataclass(frozen=True)
class TokenScores:
    """`logprobs[N]` of the target tokens, and `extra[name]` (`[N]` or `[N, k]`) for every need."""

    logprobs: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.extra:
            raise KeyError(f"score '{name}' was not asked for (there are: logprobs, {', '.join(sorted(self.extra))})")
        return self.extra[name]


def _entropy(chunk: Chunk) -> Tensor:
    logprobs = chunk.log_softmax
    return -(logprobs.exp() * logprobs).sum(-1)


def _reference_logprobs(chunk: Chunk) -> Tensor:
    return chunk.reference_log_softmax.gather(-1, chunk.tokens[:, None]).squeeze(-1)


def _forward_kl(chunk: Chunk) -> Tensor:
    reference = chunk.reference_log_softmax
    return (reference.exp() * (reference - chunk.log_softmax)).sum(-1)


def _reverse_kl(chunk: Chunk) -> Tensor:
    return (chunk.log_softmax.exp() * (chunk.log_softmax - chunk.reference_log_softmax)).sum(-1)


ENTROPY = Need("entropy", _entropy)
"""H(π) in nats, differentiable."""
ENTROPY_METRIC = Need("entropy_metric", _entropy, differentiable=False)
"""H(π) for logs: no graph."""
MEAN_LOGPROB = Need("mean_logprob", lambda chunk: chunk.log_softmax.mean(-1))
"""(1/V) Σ_v log π(v): what label smoothing needs."""
SELF_CERTAINTY = Need("self_certainty", lambda chunk: -chunk.log_softmax.mean(-1), differentiable=False)
"""log Σ_v exp z_v - (1/V) Σ_v z_v, which is KL(uniform ‖ π) + ln V: how certain the policy is, in nats; no graph."""
LOG_PARTITION = Need("log_partition", lambda chunk: torch.logsumexp(chunk.logits, -1))
"""log Σ_v exp z_v: what z-loss needs."""
REFERENCE_LOGPROBS = Need("reference_logprobs", _reference_logprobs, reference=True, differentiable=False)
"""log π_0(token); read from the batch's column of the same name where it was cached."""
FORWARD_KL = Need("forward_kl", _forward_kl, reference=True)
"""KL(π_0 ‖ π) over the whole vocabulary."""
VALUES = Need("values", None)
"""V of the state that predicts the token: what a critic expects the answer to earn from there on."""
REWARDS = Need("rewards", None)
"""What a reward model says of all that stands before the token: asked of a token behind the answer (`whole_answer`)."""
REVERSE_KL = Need("reverse_kl", _reverse_kl, reference=True)
"""KL(π ‖ π_0) over the whole vocabulary."""
