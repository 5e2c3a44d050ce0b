"""Learning from the Undesirable: representations that withstand a step in the wrong direction (arXiv 2511.13052)."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.data import Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import Need, TokenScores
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives.likelihood import nll
from posttrain.objectives.objective import Objective, Term, TermLoss, objective

NonNegative = Annotated[float, Field(ge=0)]
Layer = Annotated[int, Field(ge=0)]
AscentBatch = Literal["independent", "same"]
Distance = Literal["mse", "squared", "l1", "l2", "kl", "loss"]

LIKELIHOOD = Objective(Term("nll", lambda scores, batch: nll(scores, batch)))
"""What the ascent step makes worse."""
_LOGITS = Need("logits", lambda chunk: chunk.logits)
_LOGITS_FIXED = Need("logits", lambda chunk: chunk.logits, differentiable=False)


class Perturbable(Protocol):
    """What the perturbation asks of a policy."""

    model: Any

    def trainable_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Names and parameters."""
        ...

    def scores(
        self,
        batch: Batch,
        needs: tuple[Need, ...] = (),
        *,
        hidden: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> TokenScores:
        """Scores of the target tokens with `parameters` in place of the policy's own."""
        ...

    def states(self, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """`[R, L, d]` of every layer, likewise."""
        ...


@dataclass(frozen=True)
class Direction:
    """g/‖g‖ by parameter name, one norm over all of them, and that norm."""

    unit: Mapping[str, Tensor]
    norm: Tensor

    @classmethod
    def of(cls, gradient: Mapping[str, Tensor]) -> "Direction":
        """Of an empty or vanishing gradient it is 0."""
        norm = torch.nn.utils.get_total_norm(gradient.values())
        return cls({name: values / (norm + 1e-12) for name, values in gradient.items()}, norm)


@dataclass(frozen=True)
class Undesirable:
    """A `Forward`: scores of the policy, and how far it is from itself after one ascent step (`consistency` `[N]`).

    The weights are never touched: the second pass reads p + δ, whose gradient falls on p. The fields are the options of
    `lfu`.
    """

    alpha: float
    consistency_weight: float
    ascent_batch: AscentBatch
    distance: Distance
    layers: tuple[int, int] | None
    log_rise: bool

    def prepare(self, sequences: List[Sequence], step: Step) -> List[Sequence]:
        """Leaves the direction of the ascent in the step: one for all ranks and micro-batches."""
        if self.alpha and self.consistency_weight and self._key not in step.shared:
            _refuse_what_cannot_be_perturbed(step.policy)
            ascent = step.draw() if self.ascent_batch == "independent" else sequences
            step.shared[self._key] = Direction.of(step.gradient(LIKELIHOOD, ascent))
        return sequences

    def __call__(self, policy: Perturbable, batch: Batch, needs: tuple[Need, ...]) -> TokenScores:
        """Scores with `consistency`; with a direction also `ascent_norm` `[1]`, and `rise` `[N]` where asked for."""
        direction: Direction | None = batch.step.shared.get(self._key)
        if direction is None:
            scores = policy.scores(batch, needs)
            return TokenScores(scores.logprobs, {**scores.extra, "consistency": torch.zeros_like(scores.logprobs)})
        unit = direction.unit
        moved = {name: p + self.alpha * unit[name] for name, p in policy.trainable_parameters() if name in unit}
        compare = self._outputs if self.distance in ("kl", "loss") else self._states
        scores, extra = compare(policy, batch, needs, moved)
        return TokenScores(scores.logprobs, {**scores.extra, **extra, "ascent_norm": direction.norm[None]})

    def _states(
        self, policy: Perturbable, batch: Batch, needs: tuple[Need, ...], moved: Mapping[str, Tensor]
    ) -> tuple[TokenScores, dict[str, Tensor]]:
        with _same_dropout(batch):
            clean = policy.states(batch)
        with _same_dropout(batch):
            perturbed = policy.states(batch, moved)
        scores = policy.scores(batch, needs, hidden=_at(clean[-1], batch.where))
        first, last = self.layers or (0, len(clean) - 1)
        if not first <= last < len(clean):
            raise UserError(
                f"objective 'lfu': 'layers' is {[first, last]}, but there are states 0 (embeddings) to {len(clean) - 1}"
            )
        own = batch.where + 1  # the state at the token itself, not the one that predicts it
        pairs = zip(clean[first : last + 1], perturbed[first : last + 1], strict=True)
        by_layer = [self._distance(_at(one.detach(), own), _at(other, own)) for one, other in pairs]
        extra = {"consistency": torch.stack(by_layer).mean(0)}
        if self.log_rise:
            with torch.no_grad():
                worse = policy.scores(batch, hidden=_at(perturbed[-1], batch.where), parameters=moved)
            extra["rise"] = scores.logprobs.detach() - worse.logprobs
        return scores, extra

    def _distance(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        """`[N]` from `[N, d]` and `[N, d]`."""
        exact = torch.promote_types(clean.dtype, torch.float32)
        difference = perturbed.to(exact) - clean.to(exact)
        match self.distance:
            case "l1":
                return difference.abs().mean(-1)
            case "l2":
                distance: Tensor = torch.linalg.vector_norm(difference, dim=-1)
                return distance
            case "squared":
                return difference.square().sum(-1)
            case _:
                return difference.square().mean(-1)

    def _outputs(
        self, policy: Perturbable, batch: Batch, needs: tuple[Need, ...], moved: Mapping[str, Tensor]
    ) -> tuple[TokenScores, dict[str, Tensor]]:
        """For the two distances that read what the head says; `kl` holds `[N, V]` logits twice."""
        by_logits = self.distance == "kl"
        with _same_dropout(batch):
            scores = policy.scores(batch, (*needs, _LOGITS_FIXED) if by_logits else needs)
        with _same_dropout(batch):
            perturbed = policy.scores(batch, (_LOGITS,) if by_logits else (), parameters=moved)
        if by_logits:
            clean, other = (torch.log_softmax(found["logits"], -1) for found in (scores, perturbed))
            consistency = (clean.exp() * (clean - other)).sum(-1)
        else:
            consistency = -perturbed.logprobs
        extra = {"consistency": consistency}
        if self.log_rise:
            extra["rise"] = (scores.logprobs - perturbed.logprobs).detach()
        return scores, extra

    @property
    def _key(self) -> str:
        return f"undesirable/{self.ascent_batch}"


def _at(states: Tensor, places: Tensor) -> Tensor:
    """`[N, d]` of `[R, L, d]`."""
    return states.reshape(-1, states.shape[-1])[places]


@contextlib.contextmanager
def _same_dropout(batch: Batch) -> Iterator[None]:
    """Both passes drop the same: what differs between them is the perturbation alone."""
    device = batch.tokens.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(batch.step.seed ^ int(batch.key[:1].sum()) & (2**62 - 1))
        yield


def _recomputes(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _refuse_what_cannot_be_perturbed(policy: Perturbable) -> None:
    parameters = [parameter for _, parameter in policy.trainable_parameters()]
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        raise UserError(
            "objective 'lfu' perturbs all trained weights at once and cannot do so while they are cut over ranks: "
            "train with sharding=none, or move fewer of them (adapter=lora) so that they fit"
        )
    if _recomputes(policy.model):
        raise UserError(
            "objective 'lfu' cannot be used with model.gradient_checkpointing: what is computed again in the backward "
            "pass would read the unperturbed weights; set it to false and lower micro_batch_tokens instead"
        )
    if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in parameters):
        raise UserError(
            "objective 'lfu': a small perturbation of 16-bit weights is rounded away; train with model.dtype=mixed, "
            "or with an adapter"
        )


@objective("lfu", forward=Undesirable)
def lfu(
    scores: TokenScores,
    batch: Batch,
    *,
    alpha: NonNegative = 0.1,
    consistency_weight: NonNegative = 5.0,
    ascent_batch: AscentBatch = "independent",
    distance: Distance = "mse",
    layers: tuple[Layer, Layer] | None = None,
    log_rise: bool = False,
) -> TermLoss:
    """LfU: likelihood, and hidden states that stay where they are when the weights step in the wrong direction.

    ℓ_t = -log p_t + λ (1/K) Σ_l (1/d) ‖sg h_l,t - h'_l,t‖²  `[N]`;  h' from weights θ + δ, δ = sg α g / ‖g‖,
    g = ∇ of the mean likelihood loss, one norm over all trained weights.

    α = `alpha`, λ = `consistency_weight`. `ascent_batch`: g is taken on a batch of its own (`independent`) or on the
    step's (`same`). h_l,t are states at the target token itself, K of them: the embeddings, each block, the last after
    the final norm (`layers: [first, last]` takes fewer). First order: δ is a constant. With an adapter only its weights
    are perturbed. `distance`: `mse`; `squared` (the sum over d, as the paper's equation has it: λ is then d times as
    strong); and the paper's ablations, whose exact forms are reconstructed: `l1` (mean |h - h'|), `l2` (‖h - h'‖), `kl`
    (KL(sg p ‖ p')) and `loss` (likelihood at the perturbed weights, SAM-like).

    arXiv 2511.13052, by sheet 40; the defaults are those of the authors' LoRA trainer, which is followed where it and
    the paper differ: an independent ascent batch, the mean over d, states at the token and not before it. There the
    backward pass runs after the weights were restored; here it is the gradient at θ + δ. Both terms have the step's
    reduction. α and λ belong to models of billions of weights: choose α so that likelihood falls by 5 to 50 % under it
    (`log_rise` logs by how much, for one pass of the head), λ so that the second term is a tenth of the first to equal.
    Each step costs about three of plain likelihood. Not with sharded weights, nor gradient checkpointing.

    Metrics: `nll` and `consistency` (without λ) `[N]`; `ascent_norm`, ‖g‖; `rise` `[N]`, the loss that the step adds.
    """
    consistency = scores["consistency"]
    found = {name: scores[name] for name in ("ascent_norm", "rise") if name in scores.extra}
    metrics = {"nll": -scores.logprobs.detach(), "consistency": consistency.detach(), **found}
    return -scores.logprobs + consistency_weight * consistency, metrics
