"""Masked Thought's ablations inside the embedding: dropout or noise on some tokens of the response."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from torch import Tensor

from posttrain.data.batch import Batch
from posttrain.data.scores import Need, TokenScores, uniforms
from posttrain.errors import UserError, said, wanted
from posttrain.objectives.embedding_noise import Embedder, EmbeddingNoise

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_CHOSEN, _DROPPED = 0x4D46, 0x5431
"""Which tokens, and which of their numbers: draws of the same step and token that must not repeat one another."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ResponseNoise:
    """A `Forward`: the embeddings of some target tokens are disturbed where the model reads them; their labels stay.

    With probability p = min(rate, rate · step / (ramp · steps + 1)) a token's embedding x becomes
    dropout_q(x) + (α / √(L d)) ε, with q = `dropout` (what remains is scaled by 1 / (1 - q); nothing remains at q = 1)
    and the noise of `EmbeddingNoise` with its L. Draws depend on (step's seed, token) alone.

    arXiv 2403.02178, by sheet 34, which compares these with masked and random tokens (the transform `corrupt`) at
    p = 0.4: α = 1000 and q = 1 come near them. Scaling and L are torch's and NEFTune's; the paper's are not known.
    """

    rate: Share = 0.4
    ramp: NonNegative = 2 / 3
    dropout: Share = 0.0
    alpha: NonNegative = 0.0

    def __call__(self, policy: Embedder, batch: Batch, needs: tuple[Need, ...]) -> TokenScores:
        """Scores of the batch's target tokens, some of which the model cannot read well."""
        embedded = policy.embed(batch.rows.input_ids)
        return policy.scores(batch, needs, embeddings=self.disturbed(batch, embedded))

    def disturbed(self, batch: Batch, embedded: Tensor) -> Tensor:
        """`[R, L, d]`: the embeddings with the chosen tokens' disturbed."""
        chosen = uniforms(batch.key, batch.step.seed ^ _CHOSEN, 1)[:, 0] < batch.step.ramped(self.rate, self.ramp)
        places = batch.where[chosen] + 1  # a token is predicted from the place before its own
        flat = embedded.flatten(0, 1)
        found = flat[places] * self._kept(batch.key[chosen], batch.step.seed, flat)
        if self.alpha:
            found = found + EmbeddingNoise(self.alpha).noise(batch, embedded).flatten(0, 1)[places]
        return flat.index_copy(0, places, found.to(flat.dtype)).reshape(embedded.shape)

    @torch.no_grad()
    def _kept(self, key: Tensor, seed: int, like: Tensor) -> Tensor:
        """`[n, d]`: 0 where a number is dropped, else what it is multiplied by."""
        if self.dropout in (0.0, 1.0):
            return like.new_full((1, 1), 1 - self.dropout)
        kept = uniforms(key, seed ^ _DROPPED, like.shape[-1]) >= self.dropout
        return kept.to(like.dtype) / (1 - self.dropout)


def response_noise(name: str, options: Any) -> ResponseNoise:
    """What a recipe says under `embedding_noise`. Raises `UserError` that names the objective and the option."""
    try:
        return TypeAdapter(ResponseNoise).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"objective '{name}': option 'embedding_noise.{option}' {wanted(first)}, found {said(first['input'])}"
        ) from None
