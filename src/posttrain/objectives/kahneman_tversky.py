"""KTO: answers that are each labelled good or bad, weighed against what the policy gives answers in general."""

from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from posttrain.data import Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import REFERENCE_LOGPROBS, TokenScores
from posttrain.data.step import Step
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.reduction import Reduction

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]

REFERENCE_POINT = "reference_point"


def reference_point(sequences: List[Sequence], step: Step) -> list[Sequence]:
    """KTO's z0 of the whole step, as a scalar `reference_point` of each of its sequences.

    z0 = max(0, mean over the step's sequences of Σ_t log π(y'_t) - log π_0(y'_t)), where y' is the answer of another
    sequence, read behind this one's prompt: how much more the policy likes just any answer than its reference does.

    Scored without gradient, before the step's first backward: every micro-batch and rank then weighs its answers
    against the same number. (TRL has one of each micro-batch, so that its gradient depends on the cut.) The order that
    says whose answer is read is one of content: first the good, then the bad, each sorted; the answer is that of the
    nearest predecessor with another prompt. Mismatched sequences are cut at the step's longest sequence. A step with a
    single prompt has no mismatched answer, and z0 is 0 there. Sequences without `chosen` take no part.
    """
    items = [
        _Item.of(sequence) if sequence.target.any() and "chosen" in sequence.scalars else None for sequence in sequences
    ]
    everyone = sorted({item for share in step.gather(items) for item in share if item is not None}, key=_Item.order)
    places = {item: place for place, item in enumerate(everyone)}
    longest = max((len(item.prompt) + len(item.answer) for item in everyone), default=0) // _WIDTH
    mismatched = []
    for sequence, item in zip(sequences, items, strict=True):
        other = _predecessor(everyone, places[item]) if item is not None else None
        if item is not None and other is not None:
            mismatched.append(_behind(sequence, item, other, longest))
    scores = step.score(mismatched, (REFERENCE_LOGPROBS,))
    ratios = [float((found.logprobs - found["reference_logprobs"]).double().sum()) for found in scores]
    sums, counts = zip(*step.gather((sum(ratios), len(ratios))), strict=True)
    point = max(0.0, sum(sums) / sum(counts)) if sum(counts) else 0.0
    return [replace(sequence, scalars={**sequence.scalars, REFERENCE_POINT: point}) for sequence in sequences]


@objective(
    "kto",
    needs=(REFERENCE_LOGPROBS,),
    reduction=Reduction("sequences"),
    level="sequence",
    scalars=("chosen",),
    prepare=reference_point,
)
def kto(
    scores: TokenScores,
    batch: Batch,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> TermLoss:
    """Kahneman-Tversky optimisation: good answers are to gain on the reference, bad ones to lose.

    ℓ = λ_D (1 - σ(β (h - z0))) where `chosen` is 1,  λ_U (1 - σ(β (z0 - h))) where it is 0  `[S]`;
    h = Σ_t log π(y_t) - log π_0(y_t);  z0 from `reference_point`, without gradient;  λ_D = `desirable_weight`,
    λ_U = `undesirable_weight`. With unequal counts the paper asks for λ_D n_D / (λ_U n_U) between 1 and 4/3.

    Ethayarajh et al. (arXiv 2402.01306, equations 7 and 8); sheet 52. The two sides of a preference pair are two
    labelled answers here. Each step costs a second forward, for z0. Metrics: `chosen_reward` and `rejected_reward`
    (β h, over the answers of that label), `chosen_logprob` and `rejected_logprob` (per token), `reference_point` (z0).
    """
    chosen = batch.scalar("chosen") > 0
    ratios = batch.sum_by_sequence(scores.logprobs - scores["reference_logprobs"])
    point = batch.scalar(REFERENCE_POINT)
    gains = torch.where(chosen, ratios - point, point - ratios)
    weights = torch.where(chosen, desirable_weight, undesirable_weight)
    metrics = {REFERENCE_POINT: point}
    for name, values in (("reward", beta * ratios), ("logprob", batch.mean_by_sequence(scores.logprobs))):
        metrics[f"chosen_{name}"] = torch.where(chosen, values, torch.nan)
        metrics[f"rejected_{name}"] = torch.where(chosen, torch.nan, values)
    return weights * torch.sigmoid(-beta * gains), metrics


_WIDTH = np.dtype(np.int32).itemsize


@dataclass(frozen=True)
class _Item:
    """What mismatching needs of a sequence, as bytes: they hash, sort and travel between ranks."""

    chosen: bool
    prompt: bytes
    answer: bytes
    target: bytes

    @classmethod
    def of(cls, sequence: Sequence) -> "_Item":
        first = int(sequence.target.argmax())
        return cls(
            chosen=sequence.scalars.get("chosen", 0.0) > 0,
            prompt=sequence.tokens[:first].tobytes(),
            answer=sequence.tokens[first:].tobytes(),
            target=sequence.target[first:].tobytes(),
        )

    def order(self) -> tuple[bool, bytes, bytes, bytes]:
        return not self.chosen, self.prompt, self.answer, self.target


def _predecessor(everyone: List[_Item], place: int) -> _Item | None:
    """The nearest item before `place`, around the corner, whose prompt is another one."""
    before = (everyone[place - step] for step in range(1, len(everyone)))
    return next((item for item in before if item.prompt != everyone[place].prompt), None)


def _behind(sequence: Sequence, item: _Item, other: _Item, longest: int) -> Sequence:
    """The other item's answer behind this one's prompt."""
    tokens = np.frombuffer(item.prompt + other.answer, np.int32)[:longest]
    silent = np.zeros(len(item.prompt) // _WIDTH, np.bool_)
    target = np.concatenate([silent, np.frombuffer(other.target, np.bool_)])[:longest]
    return replace(
        sequence, tokens=tokens, target=target, origin=np.zeros(len(tokens), np.uint8), inputs=None, columns={}
    )
