"""Losses of groups with demonstrations among the own answers; numbers of sheet 52, check 8."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from gradients import LogitsPolicy, batch_of, check_gradient, gradient, losses, mean_loss, results, step_of
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import collate
from posttrain.objectives import build_objective

PROBABILITIES = (0.01, 0.1, 0.5, 0.9)
TOKENS = [[0, 1], [2, 0, 1], [2]]


def logits_of(*probabilities: float) -> Tensor:
    """Two tokens of vocabulary: token 0 has these probabilities."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()], -1)


def mixed(advantage: tuple[float, float, float] = (1.5, -0.5, 0.25)) -> list[Sequence]:
    """A demonstration and two own answers."""
    columns = {"advantage": [[a] * len(tokens) for a, tokens in zip(advantage, TOKENS, strict=True)]}
    given, *own = step_of(TOKENS, columns=columns)
    return [given, *(replace(s, origin=(s.target * Origin.ROLLOUT).astype(s.origin.dtype)) for s in own)]


def logits() -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def logprobs(at: Tensor) -> Tensor:
    """Of `TOKENS`."""
    flat = torch.tensor([token for tokens in TOKENS for token in tokens])
    return at.log_softmax(-1).gather(-1, flat[:, None]).squeeze(-1)


def weights(spec: Any) -> list[float]:
    """What each demonstrated token's log-prob weighs at A = 1: -dℓ / d log p, by p (1 - p) d log p / d logit."""
    batch = batch_of([[0] * 4], columns={"advantage": [[1] * 4]})
    found = gradient(lambda leaf: losses(spec, batch, leaf), logits_of(*PROBABILITIES))[:, 0]
    return (-found / (1 - torch.tensor(PROBABILITIES))).tolist()


def test_golden_numbers_of_the_shaped_probability() -> None:
    batch = batch_of([[0] * 4], columns={"advantage": [[1] * 4]})
    found = losses("luffy", batch, logits_of(*PROBABILITIES))
    assert (-found).tolist() == pytest.approx([0.090909, 0.5, 0.833333, 0.9], abs=1e-6)
    assert weights("luffy") == pytest.approx([0.082645, 0.25, 0.138889, 0.09], abs=1e-6)
    assert weights({"name": "luffy", "gamma": 0}) == pytest.approx(PROBABILITIES, abs=1e-6)


def test_demonstrated_tokens_are_never_clipped_and_own_ones_are() -> None:
    columns = {"advantage": [[1, 1], [1]], "old_logprobs": [[-5.0, -5.0], [torch.tensor(0.5).log().item()]]}
    given, own = step_of([[0, 0], [0]], columns=columns)
    own = replace(own, origin=(own.target * Origin.ROLLOUT).astype(own.origin.dtype))
    found, metrics = results("luffy", collate([given, own]), logits_of(0.5, 0.9, 0.9))
    assert found.tolist() == pytest.approx([-5 / 6, -0.9, -1.2], abs=1e-6)
    assert metrics["ratio"][:2].isnan().all()
    assert metrics["ratio"][2].item() == pytest.approx(1.8)
    assert metrics["demonstration_p"][:2].tolist() == pytest.approx([0.5, 0.9])


@pytest.mark.parametrize("name", ["luffy", "srft"])
def test_without_demonstrations_it_is_grpo(name: str) -> None:
    own = mixed((-1.0, -0.5, -2.0))[1:]  # srft weighs the positive ones by entropy
    at = logits()[2:]
    torch.testing.assert_close(mean_loss(name, own, at), mean_loss("grpo", own, at))
    found, expected = (gradient(lambda leaf, n=n: mean_loss(n, own, leaf), at) for n in (name, "grpo"))
    torch.testing.assert_close(found, expected)


def test_srft_lifts_right_answers_by_entropy_and_leaves_the_rest() -> None:
    at = logits()
    p = at.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    found = losses("srft", collate(mixed()), at)
    lifted = 0.1 * entropy[5].exp() * -0.25
    expected = [*(-1.5 * logprobs(at)[:2].exp()), 0.5, 0.5, 0.5, lifted]
    assert found.tolist() == pytest.approx([float(value) for value in expected], abs=1e-6)


def test_imitation_counts_the_less_the_less_sure_the_policy_is() -> None:
    at = torch.zeros(6, 3)
    at[:2, 0] = 50.0  # sure of the first sequence, and of nothing else
    found, metrics = results("entropy_nll", collate(step_of(TOKENS)), at)
    assert metrics["entropy_weight"].tolist() == pytest.approx([1, 1 / 3, 1 / 3], abs=1e-6)
    assert found.tolist() == pytest.approx([0, 50, *[1.0986123 / 3] * 4], abs=1e-5)
    weight = gradient(lambda leaf: losses("entropy_nll", collate(step_of(TOKENS)), leaf), logits())
    nll = gradient(lambda leaf: losses("nll", collate(step_of(TOKENS)), leaf), logits())
    ratio = (weight / nll).nan_to_num()[5]
    p = logits().softmax(-1)[5]
    assert ratio.tolist() == pytest.approx([float((p * p.log()).sum().exp())] * 3, rel=1e-5)  # H has no gradient


@pytest.mark.parametrize("spec", ["luffy", {"name": "luffy", "gamma": 0}, "srft", "entropy_nll"])
def test_gradients_are_those_of_finite_differences(spec: Any) -> None:
    check_gradient(spec, collate(mixed()), logits())


@pytest.mark.parametrize("spec", ["luffy", "srft", {"name": "entropy_nll", "reduction": "sequences"}])
def test_any_cut_of_a_step_costs_the_same(spec: Any) -> None:
    objective, step, at = build_objective(spec), mixed(), logits()
    rows = objective.coefficients(step)
    whole = mean_loss(spec, step, at)
    parts = [
        objective.loss(LogitsPolicy(at[place]), objective.attach(collate([s]), [s], [row])).value
        for s, row, place in zip(step, rows, (slice(0, 2), slice(2, 5), slice(5, 6)), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole)
