"""Distillation on given tokens: the whole next-token distribution of a teacher, which is the reference model."""

import math
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.data.batch import Batch
from posttrain.data.scores import Chunk, Need, TokenScores
from posttrain.errors import UserError
from posttrain.objectives.objective import objective

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """`[n, V]`, finite: a token that is ruled out (logit -inf) counts 0 below instead of 0 · -inf."""
    logits = logits if temperature == 1 else logits / temperature
    return torch.log_softmax(logits, -1).clamp(min=torch.finfo(logits.dtype).min)


def _shared_vocabulary(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Models of one family pad one vocabulary to different sizes: the rows beyond the smaller one are no tokens."""
    sizes = sorted((student.shape[-1], teacher.shape[-1]))
    if sizes[1] > 1.01 * sizes[0]:
        raise UserError(
            f"objective 'distillation': the model has {student.shape[-1]} tokens and the teacher {teacher.shape[-1]}: "
            "they do not share a vocabulary; choose a teacher with the model's own tokenizer"
        )
    return student[:, : sizes[0]], teacher[:, : sizes[0]]


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first ‖ second)  `[n]` of log-probs `[n, V]`."""
    return (first.exp() * (first - second)).sum(-1)


def _distance(chunk: Chunk, *, divergence: Divergence, beta: float, temperature: float) -> Tensor:
    if chunk.reference_logits is None:
        raise ValueError("distillation needs the teacher's logits")
    logits = _shared_vocabulary(chunk.logits, chunk.reference_logits)
    student, teacher = (_log_softmax(of, temperature) for of in logits)
    if divergence == "forward_kl":
        return _kl(teacher, student)
    if divergence == "reverse_kl":
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _need(divergence: Divergence, beta: float, temperature: float) -> Need:
    """The name holds the options, so that two terms with different ones stay apart."""
    options = {"divergence": divergence, "beta": beta, "temperature": temperature}
    name = f"distillation({', '.join(map(str, options.values()))})"
    return Need(name, partial(_distance, divergence=divergence, beta=beta, temperature=temperature), reference=True)


@objective("distillation", needs=lambda *, divergence, beta, temperature: (_need(divergence, beta, temperature),))
def distillation(
    scores: TokenScores,
    batch: Batch,
    *,
    divergence: Divergence = "forward_kl",
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
) -> Tensor:
    """Distance of the next-token distribution from the teacher's, at every target token.

    With P = softmax(teacher's logits / τ), Q = softmax(student's / τ), τ = `temperature`  `[N]`:
    `forward_kl` KL(P ‖ Q);  `reverse_kl` KL(Q ‖ P);  `jsd` β KL(P ‖ M) + (1 - β) KL(Q ‖ M), M = β P + (1 - β) Q.

    Forward KL: Hinton et al. (arXiv 1503.02531); reverse: MiniLLM (arXiv 2306.08543), here on given tokens, without
    its policy gradient; generalised JSD: GKD (arXiv 2306.13649, equation 1), as TRL's `GKDTrainer`, which writes the
    two KLs as β = 0 and β = 1. Hinton's factor τ², which keeps gradients alike across temperatures, is not applied (nor
    is it in TRL): set the term's `weight`. On demonstrations this is supervised distillation, on the student's own
    answers it is GKD. The teacher is the stage's `reference`. Raises `UserError` for one with another vocabulary.
    """
    return scores[_need(divergence, beta, temperature).name]
