"""A single chunk's logits are kept for the backward pass and written over."""

import torch
from steps import random_step
from torch import nn

from posttrain.data.batch import collate
from posttrain.data.scores import Need
from posttrain.policy.head import Head, token_scores

BATCH = collate(random_step(0, [30, 12]))
VOCABULARY = 301


def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(BATCH.tokens), 8, generator=generator).requires_grad_()
    head = Head(nn.Linear(8, VOCABULARY))
    loss = token_scores(hidden, head, BATCH).logprobs.sum()
    inputs = [hidden, *head.projection.parameters()]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_a_need_that_gives_a_view_of_the_logits_keeps_its_values() -> None:
    hidden = torch.randn(len(BATCH.tokens), 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head = Head(nn.Linear(8, VOCABULARY))
    first_logit = Need("first", lambda chunk: chunk.logits[:, 0], differentiable=False)
    found = token_scores(hidden, head, BATCH, (first_logit,))["first"]
    torch.testing.assert_close(found, head.logits(hidden)[:, 0].detach())
