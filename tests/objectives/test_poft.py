"""Numbers from sheet 17."""

import math
from typing import Any

import pytest
import torch
from gradients import batch_of, check_gradient, gradient, losses, mean_loss, results, step_of
from torch import Tensor

from posttrain.data.batch import collate
from posttrain.errors import UserError
from posttrain.objectives import build_objective

LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double() * 2
TOKENS = [[0, 3, 1], [4]]


def logits_of(*logprobs: float) -> Tensor:
    """Token 0 of a vocabulary of two has these log-probs."""
    p = torch.tensor(logprobs, dtype=torch.float64).exp()
    return torch.stack([p, 1 - p], -1).log()


def scored(*scores: float) -> dict[str, Any]:
    return {"scalars": {"reference_score": list(scores)}}


@pytest.mark.parametrize(
    ("score", "reference", "loss", "tau"),
    [
        (-1.0, -1.0, 0.693147, 0.5),
        (-2.0, -0.5, 1.701413, 0.817574),
        (-0.3, -3.0, 0.065044, 0.062973),
        (-1.2, (-0.8 - 1 - 1.5) / 3, 0.744397, 0.524979),
    ],
)
def test_poft_has_the_numbers_of_the_sheet(score: float, reference: float, loss: float, tau: float) -> None:
    values, metrics = results("poft", batch_of([[0]], **scored(reference)), logits_of(score))
    assert values.item() == pytest.approx(loss, abs=1e-6)
    assert metrics["tau"].item() == pytest.approx(tau, abs=1e-6)
    geometric = math.exp(reference) / (math.exp(reference) + math.exp(score))
    assert metrics["tau"].item() == pytest.approx(geometric, abs=1e-6)


def test_its_gradient_is_that_of_the_mean_log_prob_times_tau() -> None:
    """Check 5 of the sheet: -τ/3 = -0.199563 on each of three log-probs; here through the logits."""
    batch, logits = batch_of([[0, 0, 0]], **scored((-0.8 - 0.4) / 2)), logits_of(-0.5, -1.5, -1.0)
    values, metrics = results("poft", batch, logits)
    assert values.item() == pytest.approx(0.913015, abs=1e-6)
    assert metrics["tau"].item() == pytest.approx(0.598688, abs=1e-6)
    assert metrics["score"].item() == pytest.approx(-1)
    plain = gradient(lambda at: losses("nll", batch, at), logits)
    torch.testing.assert_close(
        gradient(lambda at: losses("poft", batch, at), logits), 0.199563 * plain, rtol=1e-5, atol=0
    )


def test_every_sequence_weighs_the_same_whatever_its_length() -> None:
    step = step_of(TOKENS, **scored(-1.0, -2.0))
    by_sequence = losses("poft", collate(step), LOGITS)
    assert by_sequence.shape == (2,)
    assert mean_loss("poft", step, LOGITS).item() == pytest.approx(by_sequence.mean().item(), abs=1e-6)


def test_a_response_that_aligned_models_are_sure_of_is_plain_fine_tuning() -> None:
    step = step_of(TOKENS, **scored(60.0, 60.0))
    plain = {"name": "nll", "reduction": "sequences"}
    found, expected = (gradient(lambda at, s=s: mean_loss(s, step, at), LOGITS) for s in ("poft", plain))
    torch.testing.assert_close(found, expected)
    difference = mean_loss("poft", step, LOGITS) - mean_loss(plain, step, LOGITS)
    assert difference.item() == pytest.approx(60, abs=1e-4)


def test_a_response_that_aligned_models_find_implausible_is_switched_off() -> None:
    step = step_of(TOKENS, **scored(-200.0, -200.0))
    assert mean_loss("poft", step, LOGITS).item() == 0
    assert gradient(lambda at: mean_loss("poft", step, at), LOGITS).abs().max() < 1e-80


def test_margins_far_apart_do_not_overflow() -> None:
    batch = batch_of([[0], [1]], **scored(0.0, -1e4))
    logits = torch.tensor([[-1e4, 0.0], [0.0, 0.0]])
    assert losses("poft", batch, logits).tolist() == [1e4, 0.0]
    assert gradient(lambda at: losses("poft", batch, at), logits).isfinite().all()


def test_beta_and_gamma_stretch_and_shift_the_margin() -> None:
    values, metrics = results(
        {"name": "poft", "beta": 2.0, "gamma": 0.5}, batch_of([[0]], **scored(-0.5)), logits_of(-1)
    )
    assert values.item() == pytest.approx(math.log1p(math.exp(0.5)), abs=1e-6)  # 2 (-1 + .5) + .5 = -.5
    assert metrics["tau"].item() == pytest.approx(2 / (1 + math.exp(-0.5)), abs=1e-6)


@pytest.mark.parametrize("spec", ["poft", {"name": "poft", "beta": 3.0, "gamma": -1.0}], ids=str)
def test_gradients_are_those_of_finite_differences(spec: Any) -> None:
    check_gradient(spec, batch_of(TOKENS, **scored(-1.0, -2.0)), LOGITS)


def test_a_sequence_without_tokens_does_not_count() -> None:
    step = step_of([[0], []], **scored(-1.0, -1.0))
    assert mean_loss("poft", step, logits_of(-1.0)).item() == pytest.approx(math.log(2))
    assert losses("poft", batch_of([[], []], **scored(0, 0)), torch.zeros(0, 2)).isfinite().all()


def test_data_that_were_not_scored_are_refused() -> None:
    with pytest.raises(UserError, match="objective 'poft': sample sample0 has no scalar 'reference_score'"):
        mean_loss("poft", step_of(TOKENS), LOGITS)


def test_a_mean_over_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="reduction 'tokens' has no meaning for a loss with one value a sequence"):
        build_objective({"name": "poft", "reduction": "tokens"})
