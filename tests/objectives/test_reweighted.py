"""Numbers from the sheets of papers 22, 36, 43 and 52; the others by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from gradients import batch_of, check_gradient, gradient, losses, mean_loss, results, step_of
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import random_step
from torch import Tensor

from posttrain.data.batch import collate
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.policy import Policy

LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double() * 2
REFERENCE = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double() * 2
TOKENS = [[0, 3, 1], [4]]


def logits_of(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def two_tokens(*p: float) -> Tensor:
    """Token 0 of a vocabulary of two has these probabilities."""
    return logits_of(*([value, 1 - value] for value in p))


def assert_near(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


# DFT (sheet 36)


def test_dft_has_the_numbers_of_sheet_36() -> None:
    batch, logits = batch_of([[0, 0, 0]]), two_tokens(0.5, 0.9, 0.01)
    assert_near(losses("nll", batch, logits), [0.693147, 0.105361, 4.605170])
    assert_near(losses("dft", batch, logits), [0.346574, 0.094824, 0.046052])


def test_dft_is_largest_at_one_over_e() -> None:
    logits = two_tokens(*np.linspace(0.01, 0.99, 99), 1 / math.e)
    values = losses("dft", batch_of([[0] * 100]), logits)
    assert values.argmax() == 99
    assert values.max().item() == pytest.approx(0.367879, abs=1e-6)


def test_dft_raises_improbable_tokens_because_its_weight_is_held_fixed() -> None:
    found = gradient(lambda at: losses("dft", batch_of([[0]]), at), two_tokens(0.1))
    assert_near(found, [[-0.1 * 0.9, 0.1 * 0.9]])


def test_dft_is_sft_as_reinforcement_learning_without_its_importance_weight() -> None:
    """Sheet 52, check 6."""
    logits = torch.tensor([[0.2, -0.3, 0.9]], dtype=torch.float64)
    assert_near(gradient(lambda at: -losses("nll", batch_of([[1]]), at), logits), [[-0.276221, 0.832463, -0.556242]])
    assert_near(gradient(lambda at: -losses("dft", batch_of([[1]]), at), logits), [[-0.046277, 0.139468, -0.093191]])


def test_dft_is_the_mean_over_tokens_not_over_weights() -> None:
    """Sheet 43, check 2, where it is called SFT-IS."""
    assert mean_loss("dft", step_of([[0, 0], [0]]), two_tokens(0.9, 0.5, 0.1)).item() == pytest.approx(
        0.223886, abs=1e-6
    )


def test_dft_is_that_of_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is an extra")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    step = random_step(1, [30, 7, 18, 12])
    rows = [{"input_ids": s.tokens.tolist(), "completion_mask": s.target.astype(int).tolist()} for s in step]
    model = build("llama")
    objective = build_objective("dft")
    batch = objective.attach(collate(step, pad_id=258), step, objective.coefficients(step))
    ours = objective.loss(Policy(model, tokenizer()), batch).value
    our_gradient = torch.autograd.grad(ours, list(model.parameters()))
    settings = SFTConfig(
        output_dir=str(tmp_path),
        loss_type="dft",
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        completion_only_loss=True,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
    theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    their_gradient = torch.autograd.grad(theirs, list(model.parameters()))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for found, expected in zip(our_gradient, their_gradient, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# Focal loss


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 0.105361), (2.0, 0.01 * 0.105361), (0.5, 0.316228 * 0.105361)])
def test_focal_loss_weighs_by_what_is_missing_to_certainty(gamma: float, expected: float) -> None:
    assert_near(losses({"name": "focal", "gamma": gamma}, batch_of([[0]]), two_tokens(0.9)), [expected])


def test_focal_loss_without_gamma_is_likelihood() -> None:
    batch = batch_of(TOKENS)
    focal, nll = (
        gradient(lambda at, n=n: losses(n, batch, at), LOGITS) for n in ({"name": "focal", "gamma": 0}, "nll")
    )
    torch.testing.assert_close(focal, nll)


def test_a_focal_weight_held_fixed_leaves_the_gradient_of_likelihood_times_the_weight() -> None:
    spec = {"name": "focal", "gamma": 2.0, "detach_weight": True}
    found = gradient(lambda at: losses(spec, batch_of([[0]]), at), two_tokens(0.9))
    assert_near(found, [[0.01 * -0.1, 0.01 * 0.1]])


# CHORD-φ (sheet 43)


def test_chord_phi_has_the_numbers_of_sheet_43() -> None:
    step, logits = step_of([[0, 0, 0]]), two_tokens(0.9, 0.5, 0.1)
    assert mean_loss("nll", step, logits).item() == pytest.approx(1.033698, abs=1e-6)
    assert mean_loss("chord_phi", step, logits).item() == pytest.approx(0.130001, abs=1e-6)
    assert_near(results("chord_phi", collate(step), logits)[1]["weight"], [0.09, 0.25, 0.09])


def test_the_gradient_of_phi_on_the_own_logit_is_largest_at_a_third() -> None:
    p = np.append(np.linspace(0.01, 0.99, 99), 1 / 3)
    found = -gradient(lambda at: losses("chord_phi", batch_of([[0] * 100]), at), two_tokens(*p))[:, 0]
    assert_near(found, p * (1 - p) ** 2)
    assert found.argmax() == 99
    assert found.max().item() == pytest.approx(0.148148, abs=1e-6)


def test_the_cutoff_of_phi_silences_tokens_above_it() -> None:
    spec = {"name": "chord_phi", "cutoff": 0.6}
    batch, logits = batch_of([[0, 0]]), two_tokens(0.9, 0.5)
    assert_near(losses(spec, batch, logits), [-0.09 * math.log(0.6), 0.25 * math.log(2)])
    found = gradient(lambda at: losses(spec, batch, at), logits)
    assert not found[0].any()
    assert_near(found[1], [-0.125, 0.125])


def test_tokens_that_are_impossible_cost_nothing() -> None:
    """Sheet 43, check 5: p log p tends to 0."""
    logits = torch.tensor([[-torch.inf, 0.0]], dtype=torch.float64)
    assert losses("chord_phi", batch_of([[0]]), logits).item() == 0


def test_the_ablations_of_phi() -> None:
    batch, logits = batch_of([[0, 0, 0]]), two_tokens(0.9, 0.5, 0.1)
    plain = {"name": "chord_phi", "by": "importance"}
    assert_near(losses(plain, batch, logits), losses("dft", batch, logits).tolist())
    clipped = gradient(lambda at: losses({**plain, "cutoff": 0.4}, batch, at), logits)
    assert_near(clipped, [[0, 0], [0, 0], [-0.1 * 0.9, 0.1 * 0.9]])
    entropy = [0.325083, 0.693147, 0.325083]
    found, metrics = results({"name": "chord_phi", "by": "entropy"}, batch, logits)
    assert_near(metrics["weight"], entropy)
    assert_near(found, -np.array(entropy) * np.log([0.9, 0.5, 0.1]))


# Importance-weighted SFT


def test_iw_sft_is_likelihood_while_the_policy_is_its_reference() -> None:
    batch = batch_of(TOKENS)
    expected = gradient(lambda at: losses("nll", batch, at), LOGITS)
    for ratio in ("sequence", "token"):
        spec = {"name": "iw_sft", "ratio": ratio}
        torch.testing.assert_close(losses(spec, batch, LOGITS, LOGITS), losses("nll", batch, LOGITS))
        torch.testing.assert_close(gradient(lambda at, s=spec: losses(s, batch, at, LOGITS), LOGITS), expected)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [math.sqrt(2), math.sqrt(2), 0.5]),
        ({"scale": 2.0}, [2.0, 2.0, 0.25]),
        ({"clip": [0.6, 1.3]}, [1.3, 1.3, 0.6]),
        ({"ratio": "token"}, [1.8, 1.0, 0.5]),
        ({"ratio": "token", "clip": [0, 16]}, [2.0, 1.0, 0.5]),
    ],
)
def test_iw_sft_weighs_by_the_geometric_mean_of_the_ratios_or_by_each(options: Any, weights: list[float]) -> None:
    batch, logits = batch_of([[0, 0], [0]]), two_tokens(0.5, 0.25, 0.25)
    values, metrics = results({"name": "iw_sft", **options}, batch, logits, two_tokens(0.25, 0.25, 0.5))
    assert_near(metrics["weight"], weights)
    assert_near(values, np.array(weights) * -np.log([0.5, 0.25, 0.25]))


def test_iw_sft_clips_a_sequence_at_sixteen() -> None:
    metrics = results("iw_sft", batch_of([[0]]), two_tokens(0.9), two_tokens(1e-9))[1]
    assert metrics["weight"].item() == 16


# Unlikelihood


def test_unlikelihood_lowers_bad_responses_and_raises_good_ones() -> None:
    step, logits = (
        step_of([[0], [0]], scalars={"negative": [0.0, 1.0]}),
        logits_of([0.25, 0.5, 0.25], [0.25, 0.5, 0.25]),
    )
    assert_near(losses("unlikelihood", collate(step), logits), [1.386294, 0.287682])
    found = gradient(lambda at: losses("unlikelihood", collate(step), at), logits)
    assert_near(found, [[-0.75, 0.5, 0.25], [0.25, -0.25 * 0.5 / 0.75, -0.25 * 0.25 / 0.75]])
    assert mean_loss("unlikelihood", step, logits).item() == pytest.approx((1.386294 + 0.287682) / 2, abs=1e-6)


def test_the_weight_of_bad_responses_scales_them_alone() -> None:
    spec = {"name": "unlikelihood", "negative_weight": 0.5}
    batch = batch_of([[0], [0]], scalars={"negative": [0.0, 1.0]})
    assert_near(losses(spec, batch, two_tokens(0.25, 0.25)), [1.386294, 0.5 * 0.287682])


def test_a_column_marks_single_bad_tokens_and_goes_before_the_scalar() -> None:
    marks = {"scalars": {"negative": [1.0]}, "columns": {"negative": [[0.0, 1.0]]}}
    assert_near(losses("unlikelihood", batch_of([[0, 0]], **marks), two_tokens(0.25, 0.25)), [1.386294, 0.287682])


def test_without_bad_responses_unlikelihood_is_likelihood() -> None:
    batch = batch_of(TOKENS, scalars={"negative": [0.0, 0.0]})
    torch.testing.assert_close(losses("unlikelihood", batch, LOGITS), losses("nll", batch, LOGITS))


def test_the_most_certain_mistake_has_the_largest_gradient() -> None:
    batch = batch_of([[0]], scalars={"negative": [1.0]})
    logits = torch.tensor([[60.0, 0.0]])  # 1 - exp(log p) is 0 in float32, and log p itself
    assert losses("unlikelihood", batch, logits).item() == pytest.approx(60)
    assert_near(gradient(lambda at: losses("unlikelihood", batch, at), logits), [[1.0, -1.0]])


def test_a_response_that_is_not_marked_is_refused() -> None:
    with pytest.raises(UserError, match="give every one the scalar 'negative'"):
        build_objective("unlikelihood").coefficients(step_of(TOKENS))


# All of them

MARKED: dict[str, Any] = {"scalars": {"negative": [0.0, 1.0]}}
EVERY = [
    "dft",
    "focal",
    {"name": "focal", "gamma": 0.5},
    {"name": "focal", "detach_weight": True},
    "chord_phi",
    {"name": "chord_phi", "cutoff": 0.3},
    "iw_sft",
    {"name": "iw_sft", "ratio": "token", "scale": 0.5, "clip": [0.5, 3]},
    "unlikelihood",
]


@pytest.mark.parametrize("spec", EVERY, ids=str)
def test_gradients_are_those_of_finite_differences(spec: Any) -> None:
    check_gradient(spec, batch_of(TOKENS, **MARKED), LOGITS, REFERENCE)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, -60.0, 60.0, -1e4, 1e4]), min_size=4, max_size=4), st.sampled_from(EVERY))
def test_certain_and_impossible_tokens_have_finite_losses_and_gradients(row: list[float], spec: Any) -> None:
    batch, logits = batch_of([[0], [1]], **MARKED), torch.tensor([row, row[::-1]])
    assert losses(spec, batch, logits, logits.flip(0)).isfinite().all()
    assert gradient(lambda at: losses(spec, batch, at, logits.flip(0)), logits).isfinite().all()


@pytest.mark.parametrize("spec", ["dft", "chord_phi"])
def test_a_token_of_probability_zero_costs_nothing(spec: str) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0]])
    assert losses(spec, batch_of([[0]]), logits).item() == 0
    assert not gradient(lambda at: losses(spec, batch_of([[0]]), at), logits).any()


@pytest.mark.parametrize("spec", EVERY, ids=str)
def test_nothing_costs_nothing(spec: Any) -> None:
    batch = batch_of([[], []], **MARKED)
    none = torch.zeros(0, 5)
    assert losses(spec, batch, none, none).shape == (0,)
    assert gradient(lambda at: losses(spec, batch, at, none), none).shape == (0, 5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "iw_sft", "clip": [2, 1]}, r"'clip' must be \[lowest, highest\], found \[2.0, 1.0\]"),
        ({"name": "iw_sft", "ratio": "mean"}, "'ratio' .*'sequence' or 'token'"),
        ({"name": "chord_phi", "cutoff": 0}, "'cutoff' .*above 0"),
        ({"name": "focal", "gamma": -1}, "'gamma' .*0 or more"),
        ({"name": "dft", "alpha": 1}, "unknown option 'alpha' of objective 'dft'"),
    ],
)
def test_a_mistake_in_an_option_is_named(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_objective(spec)
