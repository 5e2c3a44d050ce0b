"""Log-probs of a bare matrix product, `log_softmax(hidden @ weight.T + bias)`, with a backward pass of its own.

Logits exist for all tokens and some columns of the vocabulary at a time, so that every weight is read once a pass and
has its gradient in one product. The gradient with respect to the logits is g (e_y - softmax(z)).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Observe = Callable[[Tensor, slice], None]
"""Is shown whole rows of logits `[n, V]`, and which tokens they are of, before they are written over."""


class _Logprobs(torch.autograd.Function):
    """Saves the `[N]` log-partitions, and computes logits again for the backward pass. Where all of them are within
    `size`, which the backward pass would hold anyhow, they are kept as they are."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        size: int,
        observe: Observe | None,
    ) -> Tensor:
        fits = len(hidden) * len(weight) <= size
        if observe is not None and not fits:
            chosen, partitions = _by_rows(hidden, weight, bias, tokens, size, observe)
        else:
            chosen, largest, total, logits = _by_columns(hidden, weight, bias, tokens, size, observe)
            partitions = largest + total.log()
        ctx.save_for_backward(hidden, weight, bias, tokens, partitions)
        ctx.size = size
        ctx.exponentials = (logits, total) if fits and any(ctx.needs_input_grad) else None
        return chosen.sub_(partitions).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, partitions = ctx.saved_tensors
        gradient = gradients[0][:, None]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        to_hidden = torch.zeros_like(hidden, dtype=exact) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = torch.empty_like(bias) if bias is not None else None
        kept, ctx.exponentials = ctx.exponentials, None  # written over below: a second backward computes them again
        for at in _columns(hidden, weight, ctx.size):
            if kept is not None:
                to_logits = kept[0].mul_(-gradient / kept[1])
            else:
                to_logits = _logits(hidden, weight, bias, at).sub_(partitions).exp_().mul_(-gradient)
            column, inside = _place(tokens, at)
            to_logits.scatter_add_(-1, column, gradient * inside)
            if to_bias is not None:
                to_bias[at] = to_logits.sum(0)
            to_logits = to_logits.to(hidden.dtype)
            if to_hidden is not None:
                _add_product(to_hidden, to_logits, weight[at].to(hidden.dtype))
            if to_weight is not None and weight.dtype == hidden.dtype:
                torch.mm(to_logits.T, hidden, out=to_weight[at])
            elif to_weight is not None:
                to_weight[at] = to_logits.T @ hidden
        return to_hidden.to(hidden.dtype) if to_hidden is not None else None, to_weight, to_bias, None, None, None


plain_logprobs = cast(Callable[..., Tensor], _Logprobs.apply)
"""`(hidden[N, d], weight[V, d], bias[V] or None, tokens[N], size, observe or None)` -> `[N]` float32. `size`: how many
logits may exist at once."""


def _by_columns(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, size: int, observe: Observe | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`[N, 1]` each: the token's logit, the largest logit, and the sum of exp(logit - largest). And the exponentials of
    the columns that were computed last."""
    chosen = torch.zeros(len(hidden), 1, device=hidden.device)
    largest, total = torch.full_like(chosen, -torch.inf), torch.zeros_like(chosen)
    for at in _columns(hidden, weight, size):
        logits = _logits(hidden, weight, bias, at)
        if observe is not None:
            observe(logits, slice(0, len(hidden)))
        column, inside = _place(tokens, at)
        chosen = torch.where(inside, logits.gather(-1, column), chosen)
        larger = torch.maximum(largest, logits.amax(-1, keepdim=True))
        total = total * (largest - larger).exp() + logits.sub_(larger).exp_().sum(-1, keepdim=True)
        largest = larger
    return chosen, largest, total, logits


def _by_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, size: int, observe: Observe
) -> tuple[Tensor, Tensor]:
    """`[N, 1]` each: the token's logit and the log-partition. Slower, but `observe` sees whole rows."""
    chosen, partitions = (torch.empty(len(hidden), 1, device=hidden.device) for _ in range(2))
    rows = max(1, size // len(weight))
    for start in range(0, len(hidden), rows):
        at = slice(start, start + rows)
        logits = _logits(hidden[at], weight, bias, slice(None))
        observe(logits, at)
        chosen[at] = logits.gather(-1, tokens[at, None])
        partitions[at] = torch.logsumexp(logits, -1, keepdim=True)
    return chosen, partitions


def _columns(hidden: Tensor, weight: Tensor, size: int) -> list[slice]:
    width = max(1, size // max(1, len(hidden)))
    return [slice(start, min(start + width, len(weight))) for start in range(0, len(weight), width)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, at: slice) -> Tensor:
    offset = bias[at].to(hidden.dtype) if bias is not None else None
    return F.linear(hidden, weight[at].to(hidden.dtype), offset).float()


def _place(tokens: Tensor, at: slice) -> tuple[Tensor, Tensor]:
    """`[N, 1]` each: the token's column in the slice, and whether it is there at all (else the column is any)."""
    column = tokens[:, None] - at.start
    inside = (column >= 0) & (column < at.stop - at.start)
    return column.where(inside, 0), inside


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right in the type of total: a product rounded to bfloat16 first loses what is small."""
    if left.is_cuda and left.dtype != total.dtype:
        total.add_(torch.mm(left, right, out_dtype=total.dtype))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
