"""NEFTune: noise on the embeddings that the model reads while it trains."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posttrain.data.batch import Batch
from posttrain.data.scores import Need, TokenScores, uniforms

_NUMBERS_AT_ONCE = 2**20
_SALT = 0x4E4546  # other draws of the same step and token (one-token rollouts) must not repeat the noise


class Embedder(Protocol):
    """What the noise asks of a policy."""

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings `[..., d]` of tokens."""
        ...

    def scores(self, batch: Batch, needs: tuple[Need, ...] = (), embeddings: Tensor | None = None) -> TokenScores:
        """Scores of the target tokens where the model reads `embeddings[R, L, d]`."""
        ...


@dataclass(frozen=True)
class EmbeddingNoise:
    """A `Forward`: scores of a policy that reads x + (α / √(L d)) ε, ε uniform in [-1, 1] for each of the L·d numbers.

    NEFTune (arXiv 2310.05914, algorithm 1; α = 5, 10 or 15 there). L is the sequence's own length up to its last target
    token; transformers' `neftune_noise_alpha` takes the padded length, so that there a sequence's noise depends on its
    neighbours. Noise depends on (step's seed, sequence, position) alone, not on how a step is cut. The reference model,
    evaluation and generation read plain embeddings.
    """

    alpha: float

    def __call__(self, policy: Embedder, batch: Batch, needs: tuple[Need, ...]) -> TokenScores:
        """Scores of the batch's target tokens under noise."""
        embedded = policy.embed(batch.rows.input_ids)
        return policy.scores(batch, needs, embeddings=embedded + self.noise(batch, embedded))

    @torch.no_grad()
    def noise(self, batch: Batch, like: Tensor) -> Tensor:
        """`[R, L, d]`, of the type and on the device of `like`. 0 in sequences without a target."""
        sequence, position = _places(batch)
        width = like.shape[-1]
        start = torch.zeros(batch.sequences, dtype=torch.long, device=like.device)
        start[batch.sequence] = batch.key - batch.position  # a token's key is that of its sequence, plus its position
        length = torch.zeros_like(start).scatter_reduce(0, batch.sequence, batch.position + 1, "amax")
        scale = torch.where(length > 0, self.alpha / (length.clamp(min=1) * width).sqrt(), 0.0)
        keys = start[sequence] + position
        step = max(1, _NUMBERS_AT_ONCE // width)
        parts = [
            (2 * uniforms(keys[at : at + step], batch.step.seed ^ _SALT, width) - 1).to(like.dtype)
            for at in range(0, len(keys), step)
        ]
        return (torch.cat(parts) * scale[sequence, None].to(like.dtype)).reshape(like.shape)


def _places(batch: Batch) -> tuple[Tensor, Tensor]:
    """For each of the R·L places in the rows: which sequence stands there, and where in it the place is."""
    rows = batch.rows
    if rows.position_ids is not None:
        position = rows.position_ids.flatten()
        return (position == 0).cumsum(0) - 1, position
    height, width = rows.input_ids.shape
    place = torch.arange(height * width, device=rows.input_ids.device)
    return place // width, place % width
