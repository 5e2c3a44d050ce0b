"""What a step tells its micro-batches: the columns of a reference, and a seed of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from steps import random_step
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.scores import REFERENCE_LOGPROBS
from posttrain.objectives import Objective, build_objective
from posttrain.policy import Policy
from posttrain.training.ranks import Ranks
from posttrain.training.step import Stopwatch, accumulate_gradients, begin


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = Policy(build("llama"), tokenizer())
    policy.keep_reference()
    return policy


def gradient(policy: Policy, objective: Objective, step: list[Sequence], budget: int = 1000, at: int = 0) -> Tensor:
    policy.model.zero_grad()
    begun = begin(at, 10, 0.0, 0, policy=policy, token_budget=budget, ranks=Ranks())
    accumulate_gradients(policy, objective, step, budget, begun, Ranks(), Stopwatch(policy.device))
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("budget", [10, 1000])
def test_stored_reference_scores_are_read_only_where_the_whole_step_has_them(policy: Policy, budget: int) -> None:
    step = random_step(2, [9, 12, 7, 10], trained=1.0)
    objective = build_objective("iw_sft")
    far = [replace(s, columns={REFERENCE_LOGPROBS.name: np.full(len(s), -9.0, np.float32)}) for s in step]
    live = gradient(policy, objective, step)
    torch.testing.assert_close(gradient(policy, objective, [*far[:2], *step[2:]], budget), live)
    assert not torch.allclose(gradient(policy, objective, far, budget), live)


def test_what_a_sample_draws_differs_between_its_visits_and_not_when_a_step_is_redone(policy: Policy) -> None:
    step = random_step(4, [9, 12], trained=1.0)
    noisy = build_objective({"name": "nll", "embedding_noise": 5.0})
    first = gradient(policy, noisy, step)
    torch.testing.assert_close(gradient(policy, noisy, step, budget=10), first)
    assert not torch.allclose(gradient(policy, noisy, step, at=1), first)
