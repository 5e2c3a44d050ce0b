"""Numbers from sheet 36; those of GEM from its formula, by numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from gradients import LogitsPolicy, batch_of, check_gradient, gradient, losses, mean_loss, results, step_of
from steps import random_step
from torch import Tensor

from posttrain.data import Origin
from posttrain.data.batch import collate
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.policy import Policy

POLICY = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64).log()
BASE = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
STEP = step_of([[0, 1]])
BATCH = collate(STEP)
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double() * 2
REFERENCE = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double() * 2
MIXED = batch_of([[0, 3, 1], [4]])


def assert_near(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def asft(kl_weight: float, **more: Any) -> dict[str, Any]:
    return {"name": "asft", "kl_weight": kl_weight, **more}


# ASFT and SFT + KL (sheet 36)


@pytest.mark.parametrize(
    ("kl_weight", "expected"), [(0.0, 0.305432), (0.05, 0.309171), (0.1, 0.312911), (1.0, 0.380217)]
)
def test_asft_has_the_numbers_of_sheet_36(kl_weight: float, expected: float) -> None:
    assert mean_loss(asft(kl_weight), STEP, POLICY, BASE).item() == pytest.approx(expected, abs=1e-6)


def test_its_parts_have_the_numbers_of_sheet_36() -> None:
    assert_near(losses("nll", BATCH, POLICY), [0.356675, 1.203973])
    values, metrics = results(asft(0.0), BATCH, POLICY)
    assert_near(values, [0.249672, 0.361192])
    assert_near(metrics["weight"], [0.7, 0.3])
    forward, reverse = (results(asft(1.0, direction=d), BATCH, POLICY, BASE)[1] for d in ("forward", "reverse"))
    assert_near(forward["forward_kl"], [0.092033, 0.057536])
    assert_near(reverse["reverse_kl"], [0.085123, 0.052325])


def test_sft_kl_has_the_numbers_of_sheet_36() -> None:
    assert mean_loss("nll", STEP, POLICY).item() == pytest.approx(0.780324, abs=1e-6)
    held = mean_loss({"name": "sft_kl", "kl_weight": 0.1}, STEP, POLICY, BASE)
    assert held.item() == pytest.approx(0.787802, abs=1e-6)


@pytest.mark.parametrize(
    ("kl_weight", "expected"),
    [
        (0.0, [[-0.105, 0.07, 0.035], [0.015, -0.105, 0.09]]),
        (0.1, [[-0.095, 0.065, 0.03], [0.01, -0.1, 0.09]]),
    ],
)
def test_the_gradient_of_asft_has_the_numbers_of_sheet_36(kl_weight: float, expected: list[list[float]]) -> None:
    assert_near(gradient(lambda at: mean_loss(asft(kl_weight), STEP, at, BASE), POLICY), expected)


@pytest.mark.parametrize(("held", "free"), [("asft", "dft"), ("sft_kl", "nll")])
def test_without_weight_the_hold_is_gone_and_no_reference_is_asked_for(held: str, free: str) -> None:
    spec = {"name": held, "kl_weight": 0}
    assert not build_objective(spec).needs_reference
    torch.testing.assert_close(losses(spec, MIXED, LOGITS), losses(free, MIXED, LOGITS))
    found, expected = (gradient(lambda at, s=s: losses(s, MIXED, at), LOGITS) for s in (spec, free))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_hold_does_nothing_while_the_policy_is_its_reference(direction: str) -> None:
    spec = asft(1.0, direction=direction)
    values, metrics = results(spec, MIXED, LOGITS, LOGITS)
    assert metrics[f"{direction}_kl"].abs().max() < 1e-12
    torch.testing.assert_close(values, losses("dft", MIXED, LOGITS))
    found, free = gradient(lambda at: losses(spec, MIXED, at, LOGITS), LOGITS), asft(0.0)
    torch.testing.assert_close(found, gradient(lambda at: losses(free, MIXED, at), LOGITS))


def test_new_adapters_are_no_distance_from_the_model_without_them() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    policy = Policy(model, tokenizer())
    policy.keep_reference()
    objective, step = build_objective(asft(1.0)), random_step(0, [9, 14])
    loss = objective.loss(policy, objective.attach(collate(step), step, objective.coefficients(step)))
    assert loss.metrics["forward_kl"][0] == 0


def test_what_is_no_target_of_the_term_has_no_gradient_however_far_it_is() -> None:
    step = step_of([[0, 1]])
    step[0].origin[2] = Origin.ROLLOUT
    far = torch.tensor([[0.0, 0.0, 0.0], [9.0, -9.0, 0.0]])
    objective = build_objective(asft(1.0, origins=["demonstration"]))
    batch = objective.attach(collate(step), step, objective.coefficients(step))
    found = gradient(lambda at: objective.loss(LogitsPolicy(at, POLICY.float()), batch).value, far)
    assert found[0].abs().min() > 0.01
    assert not found[1].any()


def test_the_loss_of_a_micro_batch_without_targets_has_a_graph() -> None:
    batch = batch_of([[], []])
    none = torch.zeros(0, 3, requires_grad=True)
    value = losses(asft(0.1), batch, none, torch.zeros(0, 3))
    assert value.shape == (0,)
    assert value.requires_grad


# Likelihood with an entropy bonus


def test_the_entropy_bonus_is_subtracted() -> None:
    spec = {"name": "sft_entropy", "entropy_weight": 0.5}
    entropy = [-(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))]
    entropy += [-(0.1 * math.log(0.1) + 0.3 * math.log(0.3) + 0.6 * math.log(0.6))]
    values, metrics = results(spec, BATCH, POLICY)
    assert_near(metrics["entropy"], entropy)
    assert_near(values, [0.356675 - 0.5 * entropy[0], 1.203973 - 0.5 * entropy[1]])


def test_a_uniform_distribution_feels_no_entropy_bonus() -> None:
    spec, level = {"name": "sft_entropy", "entropy_weight": 1.0}, torch.zeros(4, 5)
    found, expected = (gradient(lambda at, s=s: losses(s, MIXED, at), level) for s in (spec, "nll"))
    torch.testing.assert_close(found, expected)


# GEM


def gem_by_numpy(logits: Tensor, tokens: list[int], beta: float, shape: str) -> Any:
    z = logits.numpy()
    rows = np.arange(len(tokens))
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    q = np.exp(z / beta) / np.exp(z / beta).sum(-1, keepdims=True)
    margin = logp[rows, tokens][:, None] - logp
    weight = 1.0 if shape == "linear" else 1 / (1 + np.exp(0.01 * margin))
    return -(q * weight * margin).sum(-1)


@pytest.mark.parametrize("shape", ["linear", "logsigmoid"])
@pytest.mark.parametrize("beta", [0.3, 0.7, 1.0])
def test_gem_is_its_formula(beta: float, shape: str) -> None:
    found = losses({"name": "gem", "beta": beta, "shape": shape}, MIXED, LOGITS)
    assert_near(found, gem_by_numpy(LOGITS, [0, 3, 1, 4], beta, shape))


def test_the_gradient_of_linear_gem_is_q_without_the_target() -> None:
    spec = {"name": "gem", "beta": 0.7, "shape": "linear"}
    target = torch.nn.functional.one_hot(MIXED.tokens, 5)
    found = gradient(lambda at: losses(spec, MIXED, at), LOGITS)
    torch.testing.assert_close(found, torch.softmax(LOGITS / 0.7, -1) - target)


def test_linear_gem_at_beta_one_has_the_gradient_of_likelihood() -> None:
    spec = {"name": "gem", "beta": 1.0, "shape": "linear"}
    found, expected = (gradient(lambda at, s=s: losses(s, MIXED, at), LOGITS) for s in (spec, "nll"))
    torch.testing.assert_close(found, expected)


def test_gem_stops_pushing_a_target_that_leads_before_likelihood_does() -> None:
    logits, batch = torch.tensor([[2.0, 0.0, -1.0]]), batch_of([[0]])
    spec = {"name": "gem", "beta": 0.3, "shape": "linear"}
    gem, nll = (gradient(lambda at, s=s: losses(s, batch, at), logits).norm() for s in (spec, "nll"))
    assert gem < 0.05 * nll


def test_what_is_ruled_out_costs_gem_nothing() -> None:
    logits = torch.tensor([[0.3, -torch.inf, 0.1]])
    for shape in ("linear", "logsigmoid"):
        spec = {"name": "gem", "shape": shape}
        without = losses(spec, batch_of([[0]]), logits[:, [0, 2]])
        torch.testing.assert_close(losses(spec, batch_of([[0]]), logits), without)
        found = gradient(lambda at, s=spec: losses(s, batch_of([[0]]), at), logits)
        assert found.isfinite().all()
        assert found[0, 1] == 0


# All of them

EVERY = [
    asft(0.5),
    asft(0.5, direction="reverse"),
    {"name": "sft_kl", "kl_weight": 0.5},
    {"name": "sft_kl", "kl_weight": 0.5, "direction": "reverse"},
    {"name": "sft_entropy", "entropy_weight": 0.5},
    "gem",
    {"name": "gem", "shape": "linear", "beta": 0.4},
]


@pytest.mark.parametrize("spec", EVERY, ids=str)
def test_gradients_are_those_of_finite_differences(spec: Any) -> None:
    check_gradient(spec, MIXED, LOGITS, REFERENCE)


@pytest.mark.parametrize("spec", EVERY, ids=str)
def test_extremes_are_finite_and_equal_logits_are_no_exception(spec: Any) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [0.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    batch = batch_of([[0, 0, 0, 0]])
    assert losses(spec, batch, logits, logits.flip(0)).isfinite().all()
    assert gradient(lambda at: losses(spec, batch, at, logits.flip(0)), logits).isfinite().all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (asft(-0.1), "'kl_weight' .*0 or more"),
        (asft(0.1, direction="backward"), "'direction' .*'forward' or 'reverse'"),
        ({"name": "gem", "beta": 0}, "'beta' .*above 0"),
        ({"name": "gem", "shape": "sigmoid"}, "'shape' .*'linear' or 'logsigmoid'"),
    ],
)
def test_a_mistake_in_an_option_is_named(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_objective(spec)
