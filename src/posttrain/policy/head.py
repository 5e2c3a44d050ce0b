"""The head: from hidden states at target positions to per-token scores, in chunks.

No `[N, V]` tensor exists: a chunk's logits are computed, reduced to `[n]`-sized results and dropped, and computed again
for the backward pass. Softmax and everything after it is float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posttrain.data.batch import Batch
from posttrain.data.scores import Chunk, Need, TokenScores
from posttrain.policy.logprobs import plain_logprobs

LOGITS_PER_CHUNK = {"cpu": 2**22, "cuda": 2**26}
"""16 MiB of float32 logits on a CPU, 256 on a GPU: small beside any model's activations, large enough for efficient
matrix products."""


@dataclass(frozen=True)
class Head:
    """The output projection of a model, with the transforms that some architectures put after it.

    `scale` multiplies the logits (Cohere; Granite divides); `softcap` c gives c·tanh(z/c) (Gemma 2 and 3). `words`: see
    `Chunk`.
    """

    projection: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    words: int | None = None

    @property
    def is_plain(self) -> bool:
        """A bare matrix product, for which the hand-written backward pass below holds."""
        return type(self.projection) is nn.Linear and self.scale == 1.0 and self.softcap is None

    @property
    def is_linear(self) -> bool:
        """Do logits shrink with the states? Then so does a temperature."""
        return type(self.projection) is nn.Linear and self.projection.bias is None and self.softcap is None

    def logits(self, hidden: Tensor, temperature: Tensor | None = None) -> Tensor:
        """`[n, d]` -> `[n, V]` float32, divided by `temperature[n]`."""
        logits: Tensor = self.projection(hidden).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if temperature is None else logits / temperature[:, None]


ReferenceLogits = Callable[[slice], Tensor]
"""Logits `[n, V]` of the reference model at some of the batch's target tokens."""


def token_scores(
    hidden: Tensor,
    head: Head,
    batch: Batch,
    needs: tuple[Need, ...] = (),
    reference: ReferenceLogits | None = None,
    logits_per_chunk: int | None = None,
    recompute: bool = True,
) -> TokenScores:
    """Scores of the `N` target tokens from `hidden[N, d]`, the states that predict them.

    All are at the temperature that a sequence was drawn at (see `Batch.temperature`). `recompute`: chunks are computed
    again in the backward pass, all but the last one, which comes first there. Where the head has other weights by then,
    they are kept instead.
    """
    temperature = batch.temperature
    if temperature is not None and head.is_linear:
        hidden, temperature = hidden / temperature.to(hidden.dtype)[:, None], None
    weight = getattr(head.projection, "weight", None)
    vocabulary = weight.shape[0] if isinstance(weight, Tensor) else hidden.shape[-1]
    size = logits_per_chunk or LOGITS_PER_CHUNK.get(hidden.device.type, 2**22)
    rows = max(16, size // vocabulary)
    graph = torch.is_grad_enabled()
    if head.is_plain and temperature is None and not (graph and any(need.differentiable for need in needs)):
        observe = _Observer(batch, needs, reference, head.words) if needs else None
        linear = head.projection
        if torch.is_autocast_enabled(hidden.device.type):  # the backward pass runs outside autocast: settle it here
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        logprobs = plain_logprobs(hidden, linear.weight, linear.bias, batch.tokens, rows * vocabulary, observe)
        return TokenScores(logprobs, observe.results() if observe else {})
    parts: list[dict[str, Tensor]] = []
    for at in _slices(len(hidden), rows):

        def scores(states: Tensor, at: slice = at) -> dict[str, Tensor]:
            logits = head.logits(states, None if temperature is None else temperature[at])
            return chunk_scores(_chunk(logits, batch, at, needs, reference, head.words), needs)

        again = graph and recompute and at.stop < len(hidden)
        parts.append(checkpoint(scores, hidden[at], use_reentrant=False) if again else scores(hidden[at]))
    joined = _joined(parts)
    return TokenScores(joined.pop("logprobs"), joined)


def _slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices; one empty slice of nothing, so that no tokens give results of the right shapes too."""
    return (slice(start, min(start + size, count)) for start in range(0, max(1, count), size))


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _chunk(
    logits: Tensor,
    batch: Batch,
    at: slice,
    needs: tuple[Need, ...],
    reference: ReferenceLogits | None,
    words: int | None,
) -> Chunk:
    compared = any(need.reference for need in needs)
    if compared and reference is None:
        raise ValueError("the objective compares with a reference model, but the policy has none")
    reference_logits = reference(at) if compared and reference is not None else None
    if reference_logits is not None and batch.temperature is not None:
        reference_logits = reference_logits / batch.temperature[at, None]
    return Chunk(logits, batch.tokens[at], batch.key[at], reference_logits, batch.step.seed, words)


def chunk_scores(chunk: Chunk, needs: tuple[Need, ...]) -> dict[str, Tensor]:
    """ "logprobs" `[n]` of a chunk's targets, and what is needed besides, by name."""
    chosen = chunk.logits.gather(-1, chunk.tokens[:, None]).squeeze(-1)
    return {"logprobs": chosen - torch.logsumexp(chunk.logits, -1), **_need_scores(chunk, needs)}


def _need_scores(chunk: Chunk, needs: tuple[Need, ...]) -> dict[str, Tensor]:
    results = {}
    for need in needs:
        assert need.function is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and need.differentiable):
            results[need.name] = need.function(chunk)
    return results


class _Observer:
    """Needs without a graph, read off the chunks while the log-probs are computed."""

    def __init__(
        self, batch: Batch, needs: tuple[Need, ...], reference: ReferenceLogits | None, words: int | None
    ) -> None:
        self.batch, self.needs, self.reference, self.words = batch, needs, reference, words
        self.parts: list[dict[str, Tensor]] = []

    def __call__(self, logits: Tensor, at: slice) -> None:
        chunk = _chunk(logits, self.batch, at, self.needs, self.reference, self.words)
        # clones: a need may give a view, and the logits are written over next
        self.parts.append({name: values.clone() for name, values in _need_scores(chunk, self.needs).items()})

    def results(self) -> dict[str, Tensor]:
        return _joined(self.parts)
