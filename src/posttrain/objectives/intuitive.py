"""Intuitive Fine-Tuning: the model reads its own predictions mixed into the demonstration (arXiv 2405.11870)."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from posttrain.data.batch import Batch
from posttrain.data.scores import Chunk, Need, TokenScores
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.reduction import Reduction

Share = Annotated[float, Field(ge=0, le=1)]
Embeddings = Literal["fixed", "trained"]
Reading = Literal["code", "algorithm", "equation"]
Propagated = Literal["loss", "nll", "mask"]
Side = Literal["later", "earlier"]
Norm = Literal["l1", "l2", "softmax", "log"]
Detach = Literal["nothing", "normaliser", "weights"]

_SALT = 0x494654
_TINY = 1e-12


class Embedder(Protocol):
    """What the mixing asks of a policy."""

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings `[..., d]` of tokens."""
        ...

    def scores(self, batch: Batch, needs: tuple[Need, ...] = (), embeddings: Tensor | None = None) -> TokenScores:
        """Scores of the target tokens where the model reads `embeddings[R, L, d]`."""
        ...


def _predicted(chunk: Chunk, *, rank: int, temperature: float) -> Tensor:
    """`[n]`: the token that the model itself would write; at a temperature, a draw that depends on step and token."""
    if temperature == 0:
        return chunk.logits.argmax(-1) if rank == 1 else chunk.logits.topk(rank, -1).indices[:, -1]
    cumulative = torch.softmax(chunk.logits / temperature, -1).cumsum(-1, dtype=torch.float64)
    at = chunk.uniforms(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, at, right=True).squeeze(-1).clamp(max=chunk.logits.shape[-1] - 1)


@dataclass(frozen=True)
class TemporalResidual:
    """A `Forward`: scores of a policy that reads e_t = (1 - λ) E[x_t] + λ E[x̂_t] at every target token.

    x̂_t is what the policy predicts at that place from the demonstration itself, in a first pass without gradient.
    Everything else is read as it is. The scores also hold `gold_logprobs` and `predictions` `[N]`, those of the first
    pass, and `mix` `[1]`, this step's λ. At λ = 0 there is no first pass. The fields are options of `ift`.
    """

    mix: float
    mix_start: float | None
    mix_warmup: float
    mix_noise: float
    prediction_rank: int
    prediction_temperature: float
    embeddings: Embeddings

    def __call__(self, policy: Embedder, batch: Batch, needs: tuple[Need, ...]) -> TokenScores:
        """Scores of the batch's target tokens, read from mixed embeddings."""
        mix = self.share(batch.step.progress, batch.step.seed)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.embeddings == "trained"):
            gold = policy.embed(batch.rows.input_ids)
        extra = {"mix": torch.full((1,), mix, device=gold.device)}
        if mix == 0:
            scores = policy.scores(batch, needs, embeddings=gold)
            return TokenScores(scores.logprobs, {**scores.extra, **extra, "gold_logprobs": scores.logprobs.detach()})
        function = partial(_predicted, rank=self.prediction_rank, temperature=self.prediction_temperature)
        with torch.no_grad():
            first = policy.scores(batch, (Need("predictions", function, differentiable=False),), embeddings=gold)
        with torch.set_grad_enabled(gold.requires_grad):
            # A target stands one place behind the state that predicts it.
            ids = batch.rows.input_ids.flatten().index_put((batch.where + 1,), first["predictions"])
            mixed = torch.lerp(gold, policy.embed(ids.view_as(batch.rows.input_ids)), mix)
        scores = policy.scores(batch, needs, embeddings=mixed)
        extra |= {"gold_logprobs": first.logprobs, "predictions": first["predictions"]}
        return TokenScores(scores.logprobs, {**scores.extra, **extra})

    def share(self, progress: float, seed: int) -> float:
        """λ of a step: from `mix_start` straight to `mix` over the first `mix_warmup` of the run, then with noise."""
        start = self.mix if self.mix_start is None else self.mix_start
        risen = min(1.0, progress / self.mix_warmup) if self.mix_warmup else 1.0
        mix = start + (self.mix - start) * risen
        if self.mix_noise:
            generator = torch.Generator().manual_seed((seed ^ _SALT) % 2**63)
            mix *= 1 + self.mix_noise * float(torch.randn((), generator=generator))
        return min(1.0, max(0.0, mix))


def discounted_sums(values: Tensor, batch: Batch, decay: float, side: Side) -> Tensor:
    """`[N]`: Σ γ^|i-t| v_i over the targets i of t's turn that are not before t (`later`) or not after (`earlier`).

    A gap between targets (another turn, or tokens that are not trained) ends a turn. Sums of twice the reach are made
    of two, so there are log2(N) operations on `[N]` and nothing is written in place.
    """
    begins = (batch.sequence.diff() != 0) | (batch.position.diff() != 1)
    turn = F.pad(begins.cumsum(0), (1, 0))[: len(values)]  # no targets have no turn
    sums, reach = values, 1
    while reach < len(values):
        same = turn[reach:] == turn[:-reach]
        if side == "later":
            more = F.pad(torch.where(same, sums[reach:], 0.0), (0, reach))
        else:
            more = F.pad(torch.where(same, sums[:-reach], 0.0), (reach, 0))
        sums, reach = sums + decay**reach * more, 2 * reach
    return sums


@dataclass(frozen=True)
class Propagation:
    """How the losses of a response make its tokens' weights; see `ift`, whose options the fields are."""

    decay: float = 0.95
    reading: Reading = "code"
    propagate: Propagated = "loss"
    side: Side = "later"
    norm: Norm = "l1"
    detach: Detach = "nothing"

    def loss(self, nll: Tensor, batch: Batch) -> Tensor:
        """`[S]` from `[N]`; 0 for a sequence without targets."""
        if self.reading == "equation":
            # Σ_n Σ_{i≥n} ℓ_i counts a token once for every token that is not after it.
            return batch.sum_by_sequence(discounted_sums(torch.ones_like(nll), batch, 1.0, "earlier") * nll)
        if self.decay == 0:
            return batch.mean_by_sequence(nll)
        raw = self._raw_weights(nll.detach() if self.detach == "weights" else nll, batch)
        total = batch.sum_by_sequence(raw)
        total = total.detach() if self.detach == "normaliser" else total
        return batch.sum_by_sequence(raw * nll) / total.clamp(min=_TINY)

    def _raw_weights(self, nll: Tensor, batch: Batch) -> Tensor:
        """`[N]`: weights up to a factor for each sequence."""
        count = batch.sum_by_sequence(torch.ones_like(nll))
        if self.reading == "algorithm":
            behind = discounted_sums(torch.ones_like(nll), batch, 1.0, "later") - 1
            return self.decay**behind * discounted_sums(nll, batch, 1.0, "later")
        values = {"loss": nll / count[batch.sequence], "nll": nll, "mask": torch.ones_like(nll)}[self.propagate]
        sums = discounted_sums(values, batch, self.decay, self.side)
        if self.side == "later":
            match self.norm:
                case "softmax":
                    return _softmax(sums, batch)
                case "log":
                    return torch.log1p(sums)
                case _:
                    return sums if self.norm == "l1" else sums.square()
        sums = sums.clamp(min=_TINY)
        sums = sums + _by_sequence(sums, batch, "amin")
        match self.norm:
            case "softmax":
                return _softmax(1 / sums, batch)
            case "log":
                return 1 / torch.log1p(sums)
            case _:
                return 1 / sums if self.norm == "l1" else 1 / sums.square()


def _by_sequence(values: Tensor, batch: Batch, reduce: Literal["amin", "amax"]) -> Tensor:
    """`[N]`: at each token the least or greatest value of its sequence."""
    empty = torch.zeros(batch.sequences, dtype=values.dtype, device=values.device)
    return empty.scatter_reduce(0, batch.sequence, values, reduce, include_self=False)[batch.sequence]


def _softmax(values: Tensor, batch: Batch) -> Tensor:
    return torch.exp(values - _by_sequence(values.detach(), batch, "amax"))


def _temporal_residual(
    *,
    mix: float,
    mix_start: float | None,
    mix_warmup: float,
    mix_noise: float,
    prediction_rank: int,
    prediction_temperature: float,
    embeddings: Embeddings,
    **propagation: object,
) -> TemporalResidual:
    return TemporalResidual(mix, mix_start, mix_warmup, mix_noise, prediction_rank, prediction_temperature, embeddings)


@objective("ift", level="sequence", reduction=Reduction("sequences"), forward=_temporal_residual)
def ift(
    scores: TokenScores,
    batch: Batch,
    *,
    mix: Share = 0.2,
    mix_start: Share | None = None,
    mix_warmup: Share = 0.1,
    mix_noise: Annotated[float, Field(ge=0)] = 0.0,
    prediction_rank: Annotated[int, Field(ge=1)] = 1,
    prediction_temperature: Annotated[float, Field(ge=0)] = 0.0,
    embeddings: Embeddings = "fixed",
    decay: Share = 0.95,
    reading: Reading = "code",
    propagate: Propagated = "loss",
    side: Side = "later",
    norm: Norm = "l1",
    detach: Detach = "nothing",
) -> TermLoss:
    """Intuitive Fine-Tuning: likelihood behind the model's own predictions, where early tokens answer for later ones.

    e_t = (1 - λ) E[x_t] + λ E[x̂_t] at target tokens, x̂ = argmax of a first pass;  ℓ_t = -log π(x_t | e_<t);
    S_t = Σ_{i≥t} γ^{i-t} ℓ_i;  w_t = N S_t / Σ_k S_k;  loss of a sequence (1/N) Σ_t w_t ℓ_t  `[S]`;  mean over them.

    λ = `mix`, γ = `decay`; λ = γ = 0 is `nll` with `reduction: sequences`. Costs a second forward (unless λ = 0).

    - `mix_start` and `mix_warmup`: λ rises from one to `mix` over that share of the run; `mix_noise`: times 1 + so
      much times a normal number of the step, then held in [0, 1]. `prediction_rank`: the k-th likeliest token;
      `prediction_temperature`: a draw instead.
    - `embeddings`: fixed reads today's table without gradient, as the authors' code does (which copies the policy's
      table after every step): the input table of an untied model stays as it was, that of a tied one moves as a head
      alone. trained lets the gradient through both tokens' embeddings.
    - `propagate`: what is summed: the loss ℓ/N, the nll ℓ, or 1 for each token (mask). `side`: later tokens' sums, or
      earlier ones', inverted as 1 / (P_t + min P). `norm`: S, S², e^S or log(1 + S) in place of S.
    - `detach`: the gradient also flows through S_t and Σ S in the code, so that the nll of easy late tokens may be
      pushed up; normaliser holds Σ S fixed, weights all of w.
    - `reading`: code, as above; algorithm has the paper's algorithm 1 as printed, w_t ∝ γ^{N-t} Σ_{i≥t} ℓ_i;
      equation its equation 21, Σ_n Σ_{i≥n} ℓ_i, neither discounted nor divided by anything: later tokens weigh more.

    arXiv 2405.11870; its code's L1, left and loss are the defaults here. Departures: sums end with a turn; min P is a
    sequence's own and not the micro-batch's. `origins` says which sequences count, not which tokens. Metrics:
    `gold_nll`, `mixed_nll` (per token, in the two passes), `predicted` (share of x̂ that are x), `mix`.
    """
    nll = -scores.logprobs
    loss = Propagation(decay, reading, propagate, side, norm, detach).loss(nll, batch)
    metrics = {"mixed_nll": nll.detach()}
    if "gold_logprobs" in scores.extra:
        metrics |= {"gold_nll": -scores["gold_logprobs"], "mix": scores["mix"]}
    if "predictions" in scores.extra:
        metrics["predicted"] = (scores["predictions"] == batch.tokens).float()
    return loss, metrics
