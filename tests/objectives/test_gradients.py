from typing import Any

import pytest
import torch
from gradients import batch_of, check_gradient
from torch import Tensor

from posttrain.data.batch import Batch
from posttrain.data.scores import Chunk, Need, TokenScores
from posttrain.objectives import Objective, Term

BATCH = batch_of([[0, 2], [1]])
LOGITS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class _WrongSquare(torch.autograd.Function):
    """x², with a gradient that is off by one in a hundred."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2.02 * ctx.saved_tensors[0] * gradients[0]


class _Swapped(torch.autograd.Function):
    """x, whose gradients arrive at other tokens than they should."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].flip(0)


def weighted(scores: TokenScores, batch: Batch) -> Tensor:
    with torch.no_grad():
        weight = 1 - scores.logprobs.exp()
    return -(weight + scores.logprobs.detach()) * scores.logprobs


def test_what_is_detached_or_without_gradient_is_held_fixed() -> None:
    check_gradient(Objective(Term("weighted", weighted)), BATCH, LOGITS)


def test_a_need_without_gradient_is_held_fixed() -> None:
    largest = Need("largest", lambda chunk: chunk.log_softmax.exp().amax(-1), differentiable=False)
    term = Term("largest", lambda scores, batch: -scores["largest"] * scores.logprobs, needs=(largest,))
    check_gradient(Objective(term), BATCH, LOGITS)


def test_a_need_with_a_stop_gradient_inside_is_held_fixed() -> None:
    def expected(chunk: Chunk) -> Tensor:
        return (torch.softmax(chunk.logits, -1).detach() * chunk.log_softmax).sum(-1)

    term = Term("expected", lambda scores, batch: scores["expected"], needs=(Need("expected", expected),))
    check_gradient(Objective(term), BATCH, LOGITS)


def test_a_wrong_gradient_is_found() -> None:
    term = Term("wrong", lambda scores, batch: _WrongSquare.apply(scores.logprobs))  # type: ignore[no-untyped-call]
    with pytest.raises(AssertionError):
        check_gradient(Objective(term), BATCH, LOGITS)


def test_a_gradient_that_goes_to_another_token_is_found() -> None:
    term = Term("swapped", lambda scores, batch: _Swapped.apply(scores.logprobs))  # type: ignore[no-untyped-call]
    with pytest.raises(AssertionError):
        check_gradient(Objective(term), BATCH, LOGITS)
