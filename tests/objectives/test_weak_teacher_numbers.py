"""Losses of the sheets on weak teachers: likelihood of traces (W2SR, sheet 5), DPO (self-reinforcement, sheet 7)."""

import math
from typing import Any

import pytest
import torch
from gradients import batch_of, mean_loss, step_of

from posttrain.data.scores import TokenScores
from posttrain.objectives import build_objective

TRACES = [[-0.5, -1.0], [-0.25, -0.25, -0.5, -0.2]]
"""Log-probs of the responses, sheet 5, check 2."""


@pytest.mark.parametrize(("reduction", "expected"), [("tokens", 0.45), ("sequences", 0.525), ({"constant": 1}, 2.7)])
def test_the_likelihood_of_traces_is_that_of_their_six_response_tokens(reduction: Any, expected: float) -> None:
    step = step_of([[0] * len(row) for row in TRACES])
    assert sum(sequence.targets for sequence in step) == 6
    chances = torch.tensor([value for row in TRACES for value in row]).exp()
    logits = torch.stack([chances.log(), (1 - chances).log()], dim=-1)
    found = mean_loss({"name": "nll", "reduction": reduction}, step, logits).item()
    sums = len(TRACES) if isinstance(reduction, dict) else 1  # a constant divides the mean of sequences' sums
    assert found * sums == pytest.approx(expected, abs=1e-6)


def dpo(
    policy: tuple[list[float], list[float]], reference: tuple[list[float], list[float]], beta: float = 0.1
) -> tuple[float, list[float], dict[str, float]]:
    """The loss of a pair of answers with these token log-probs (chosen, rejected), its gradient, what is logged."""
    tokens = [[0] * len(side) for side in policy]
    batch = batch_of(tokens, scalars={"chosen": [1, 0]}, groups=["pair", "pair"])
    logprobs = torch.tensor([*policy[0], *policy[1]], dtype=torch.float64, requires_grad=True)
    held = torch.tensor([*reference[0], *reference[1]], dtype=torch.float64)
    scores = TokenScores(logprobs, {"reference_logprobs": held})
    (term,) = build_objective({"name": "dpo", "beta": beta}).terms
    loss, metrics = term.function(scores, batch)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    return loss.item(), gradient.tolist(), {name: value.item() for name, value in metrics.items()}


def one_token(chosen: float, rejected: float) -> tuple[list[float], list[float]]:
    return [chosen], [rejected]


REFERENCE = one_token(-11.0, -11.5)


def test_the_first_pair_of_the_sheet() -> None:
    loss, gradient, metrics = dpo(one_token(-10.0, -12.0), REFERENCE)
    assert loss == pytest.approx(0.6209570478, abs=1e-9)
    assert gradient == pytest.approx([-0.0462570155, 0.0462570155], abs=1e-9)
    assert metrics["chosen_reward"] == pytest.approx(0.1, abs=1e-6)
    assert metrics["rejected_reward"] == pytest.approx(-0.05, abs=1e-6)
    assert metrics["reward_margin"] == pytest.approx(0.15, abs=1e-6)
    assert metrics["reward_accuracy"] == 1


def test_the_second_pair_of_the_sheet() -> None:
    loss, gradient, metrics = dpo(one_token(-12.0, -10.0), REFERENCE)
    assert loss == pytest.approx(0.8259394199, abs=1e-9)
    assert gradient[0] == pytest.approx(-0.0562176501, abs=1e-9)
    assert metrics["reward_margin"] == pytest.approx(-0.25, abs=1e-6)


def test_a_policy_that_is_its_reference_is_undecided() -> None:
    loss, gradient, metrics = dpo(one_token(-3.0, -40.0), one_token(-3.0, -40.0))
    assert loss == pytest.approx(math.log(2), abs=1e-10)
    assert gradient == pytest.approx([-0.05, 0.05])
    assert metrics["reward_accuracy"] == 0


def test_swapping_the_answers_changes_the_loss_by_the_margin() -> None:
    """L(D) - L(-D) = -D."""
    loss, _, metrics = dpo(one_token(-10.0, -12.0), REFERENCE)
    swapped, _, other = dpo(one_token(-12.0, -10.0), REFERENCE[::-1])
    assert other["reward_margin"] == pytest.approx(-metrics["reward_margin"])
    assert loss - swapped == pytest.approx(-0.15, abs=1e-9)


@pytest.mark.parametrize(("side", "expected"), [(1, 0.0), (-1, 800.0)])
def test_a_huge_margin_gives_a_finite_loss(side: int, expected: float) -> None:
    loss, gradient, _ = dpo(one_token(side * 400.0, -side * 400.0), one_token(0.0, 0.0), beta=1.0)
    assert loss == pytest.approx(expected)
    assert all(map(math.isfinite, gradient))


def test_the_same_text_behind_both_answers_changes_nothing_where_the_policy_has_not_moved_there() -> None:
    loss, _, _ = dpo(one_token(-10.0, -12.0), REFERENCE)
    longer, _, _ = dpo(([-10.0, -2.0, -7.0], [-12.0, -2.0, -7.0]), ([-11.0, -2.0, -7.0], [-11.5, -2.0, -7.0]))
    assert longer == pytest.approx(loss, abs=1e-12)
