"""Numbers from sheets 52 (check 5) and 53 (checks 1, 2, 6 and 7)."""

import math
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from gradients import batch_of, check_gradient, losses, mean_loss, step_of
from steps import random_sequence
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import Batch, collate
from posttrain.data.scores import TokenScores
from posttrain.errors import UserError
from posttrain.objectives import Objective, build_objective
from posttrain.objectives.preference import log1mexp
from posttrain.policy import Policy, Reference

WITH_REFERENCE = ["dpo", "robust_dpo", "ipo", "slic"]
LOSSES = [*WITH_REFERENCE, "simpo", "cpo", "orpo"]
VARIANTS: list[Any] = [
    *LOSSES,
    {"name": "dpo", "label_smoothing": 0.2, "beta": 0.5},
    {"name": "dpo", "length_normalised": True, "beta": 2.0},
    {"name": "ipo", "length_normalised": False, "tau": 0.7},
    {"name": "cpo", "label_smoothing": 0.3},
]
IDS = [spec if isinstance(spec, str) else f"{spec['name']}-{list(spec)[1]}" for spec in VARIANTS]


def one_pair(chosen: int, rejected: int) -> Batch:
    """A pair whose sides have so many target tokens."""
    return batch_of([[0] * chosen, [0] * rejected], scalars={"chosen": [1, 0]}, groups=["pair", "pair"])


def pair_loss(
    spec: Any, chosen: List[float], rejected: List[float], reference: tuple[List[float], List[float]] | None = None
) -> tuple[float, Tensor, dict[str, float]]:
    """The loss of one pair with these log-probs, its gradient on each of them, and the metrics."""
    logprobs = torch.tensor([*chosen, *rejected], dtype=torch.float64, requires_grad=True)
    extra = {}
    if reference is not None:
        extra["reference_logprobs"] = torch.tensor([*reference[0], *reference[1]], dtype=torch.float64)
    (term,) = build_objective(spec).terms
    found = term.function(TokenScores(logprobs, extra), one_pair(len(chosen), len(rejected)))
    assert isinstance(found, tuple)
    (gradient,) = torch.autograd.grad(found[0].sum(), logprobs)
    return found[0].item(), gradient, {name: values.item() for name, values in found[1].items()}


def with_margin(spec: Any, margin: float) -> float:
    """The loss of a pair of single tokens for which D, h_w - h_l, is `margin`."""
    return pair_loss(spec, [-1.0], [-1.0], ([-1.0 - margin / 2], [-1.0 + margin / 2]))[0]


# Numbers of the sheets


@pytest.mark.parametrize(("margin", "expected"), [(0, 0.693147), (10, 0.313262), (-10, 1.313262)])
def test_dpo_has_the_numbers_of_sheet_52(margin: float, expected: float) -> None:
    assert with_margin("dpo", margin) == pytest.approx(expected, abs=1e-6)


def test_dpo_starts_by_moving_both_sides_by_half_of_beta() -> None:
    _, gradient, _ = pair_loss("dpo", [-1.0, -2.0], [-0.5], ([-1.0, -2.0], [-0.5]))
    torch.testing.assert_close(gradient, torch.tensor([-0.05, -0.05, 0.05], dtype=torch.float64))


def test_conservative_dpo_mixes_the_losses_of_both_labels() -> None:
    spec = {"name": "dpo", "label_smoothing": 0.1}
    assert with_margin(spec, 10) == pytest.approx(0.9 * 0.313262 + 0.1 * 1.313262, abs=1e-6)
    assert with_margin({"name": "dpo", "label_smoothing": 0.0}, 10) == with_margin("dpo", 10)


def test_robust_dpo_is_the_loss_on_right_labels_in_the_mean_over_flipped_ones() -> None:
    spec, flipped = {"name": "robust_dpo", "label_smoothing": 0.2}, 0.2
    for margin in (-10.0, 0.0, 4.0):
        mean = (1 - flipped) * with_margin(spec, margin) + flipped * with_margin(spec, -margin)
        assert mean == pytest.approx(with_margin("dpo", margin), abs=1e-9)


@pytest.mark.parametrize(("margin", "expected"), [(0, 25), (5, 0)])
def test_ipo_has_the_numbers_of_sheet_52(margin: float, expected: float) -> None:
    for length_normalised in (True, False):
        spec = {"name": "ipo", "tau": 0.1, "length_normalised": length_normalised}
        assert with_margin(spec, margin) == pytest.approx(expected, abs=1e-9)


def test_ipo_reads_the_mean_over_tokens_unless_told_otherwise() -> None:
    sides: Any = ([-1.0, -1.0], [-3.0], ([-2.0, -2.0], [-3.0]))
    assert pair_loss({"name": "ipo", "tau": 0.5}, *sides)[0] == pytest.approx(0)
    assert pair_loss({"name": "ipo", "tau": 0.5, "length_normalised": False}, *sides)[0] == pytest.approx(1)


@pytest.mark.parametrize(("margin", "expected"), [(0, 1), (10, 0), (12, 0), (-10, 2)])
def test_slic_has_the_numbers_of_sheet_52(margin: float, expected: float) -> None:
    assert with_margin("slic", margin) == pytest.approx(expected, abs=1e-9)


def test_simpo_has_the_number_of_sheet_52() -> None:
    value, _, metrics = pair_loss({"name": "simpo", "beta": 2.0, "gamma": 0.5}, [-0.5, -0.5, -0.5], [-1.0])
    assert value == pytest.approx(0.474077, abs=1e-6)
    assert metrics["reward_margin"] == pytest.approx(1.0)


def test_orpo_has_the_numbers_of_sheet_52() -> None:
    value, _, metrics = pair_loss({"name": "orpo", "beta": 1.0}, [math.log(0.5)] * 2, [math.log(0.25)])
    assert value == pytest.approx(0.287682, abs=1e-6)
    assert metrics["reward_margin"] == pytest.approx(1.098612, abs=1e-6)
    assert pair_loss("orpo", [math.log(0.5)], [math.log(0.25)])[0] == pytest.approx(0.0287682, abs=1e-7)


def test_dpo_with_mean_log_probs_and_likelihood_has_the_numbers_of_sheet_53() -> None:
    """Checks 1 and 2: the recipe of TeleChat 2, with both weights 1."""
    spec = [
        {"name": "dpo", "length_normalised": True},
        {"name": "nll", "where": "chosen", "reduction": "sequences"},
    ]
    step = step_of([[0, 0], [0]], scalars={"chosen": [1, 0]}, groups=["pair", "pair"])
    objective = build_objective(spec)
    cases = (
        ([-1.0, -1.0, -2.0], [-1.0, -1.0, -2.0], 1.693147, [-0.525, -0.525, 0.05]),
        ([-0.5, -0.5, -2.0], [-1.0, -1.0, -1.5], 1.1443967, [-0.523751, -0.523751, 0.0475021]),
    )
    for logprobs, reference, expected, gradient in cases:
        policy = GivenLogprobs(torch.tensor(logprobs, requires_grad=True), torch.tensor(reference))
        batch = objective.attach(collate(step), step, objective.coefficients(step))
        loss = objective.loss(policy, batch)
        assert loss.value.item() == pytest.approx(expected, abs=1e-6)
        found = torch.autograd.grad(loss.value, policy.logprobs)[0]
        torch.testing.assert_close(found, torch.tensor(gradient), rtol=0, atol=1e-6)
    rewards = {
        name: tuple(map(float, loss.metrics[f"dpo/{name}"]))
        for name in ("chosen_reward", "rejected_reward", "reward_accuracy")
    }
    assert rewards == {
        "chosen_reward": (pytest.approx(0.05), 1.0),
        "rejected_reward": (pytest.approx(-0.05), 1.0),
        "reward_accuracy": (1.0, 1.0),
    }


class GivenLogprobs:
    """A policy that says these log-probs of a batch's target tokens."""

    def __init__(self, logprobs: Tensor, reference: Tensor) -> None:
        self.logprobs, self.reference = logprobs, reference

    def scores(self, batch: Batch, needs: Any = ()) -> TokenScores:
        return TokenScores(self.logprobs, {"reference_logprobs": self.reference})


def test_without_its_preference_term_the_recipe_is_sft_on_chosen_answers_by_their_own_means() -> None:
    """Sheet 53, check 7."""
    spec = {"name": "nll", "where": "chosen", "reduction": "sequences"}
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9], [0.2, 0.8]]))
    step = step_of([[0, 0], [0], [0]], scalars={"chosen": [1, 0, 1]}, groups=["a", "a", "b"])
    expected = -((math.log(0.5) + math.log(0.25)) / 2 + math.log(0.2)) / 2
    assert mean_loss(spec, step, logits).item() == pytest.approx(expected, abs=1e-6)


def test_mean_log_probs_of_answers_of_one_length_are_beta_over_that_length() -> None:
    """Sheet 53, check 6."""
    sides: Any = ([-0.3, -1.2, -0.1], [-2.0, -0.4, -0.9], ([-0.7, -0.2, -0.3], [-1.0, -0.5, -0.2]))
    mean = pair_loss({"name": "dpo", "beta": 0.6, "length_normalised": True}, *sides)[0]
    assert mean == pytest.approx(pair_loss({"name": "dpo", "beta": 0.2}, *sides)[0])


# Limits and edges


def test_cpo_is_dpo_whose_reference_finds_every_answer_equally_likely() -> None:
    sides: Any = ([-0.3, -1.2], [-2.0, -0.4])
    uniform = ([-3.0, -3.0], [-3.0, -3.0])
    assert pair_loss("cpo", *sides)[0] == pytest.approx(pair_loss("dpo", *sides, uniform)[0])


@pytest.mark.parametrize("spec", VARIANTS, ids=IDS)
def test_two_equal_answers_teach_nothing_but_have_a_finite_loss(spec: Any) -> None:
    value, gradient, metrics = pair_loss(spec, [-0.4, -1.3], [-0.4, -1.3], ([-1.0, -1.0], [-1.0, -1.0]))
    assert math.isfinite(value)
    assert metrics["reward_margin"] == metrics["reward_accuracy"] == 0
    assert float(gradient.view(2, 2).sum(0).abs().max()) < 1e-9  # what one side gains the other, the same text, loses


@pytest.mark.parametrize("spec", VARIANTS, ids=IDS)
@pytest.mark.parametrize("sides", [([0.0], [-90.0]), ([-90.0], [0.0]), ([-1e4] * 3, [0.0] * 2), ([0.0], [0.0])])
def test_certain_and_impossible_answers_have_finite_losses_and_gradients(spec: Any, sides: Any) -> None:
    reference = ([-1.0] * len(sides[0]), [-1.0] * len(sides[1]))
    value, gradient, metrics = pair_loss(spec, *sides, reference)
    assert math.isfinite(value)
    assert bool(gradient.isfinite().all())
    assert all(math.isfinite(metric) for metric in metrics.values())


def test_log1mexp_is_exact_at_both_ends() -> None:
    x = torch.tensor([-1e-10, -0.5, -0.7, -40.0], dtype=torch.float64, requires_grad=True)
    expected = [math.log(1e-10), math.log(-math.expm1(-0.5)), math.log(-math.expm1(-0.7)), -math.exp(-40.0)]
    torch.testing.assert_close(log1mexp(x).detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    assert torch.autograd.gradcheck(log1mexp, x[1:])


def test_the_order_of_the_sequences_does_not_matter() -> None:
    step = step_of([[0, 0], [1], [1, 0, 1], [0]], scalars={"chosen": [1, 0, 0, 1]}, groups=["a", "a", "b", "b"])
    logits = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    reference = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    there, back = torch.arange(7), torch.tensor([3, 4, 5, 6, 2, 0, 1])
    turned = [step[2], step[3], step[1], step[0]]
    for spec in VARIANTS:
        first = losses(spec, collate(step), logits[there], reference[there])
        second = losses(spec, collate(turned), logits[back], reference[back])
        torch.testing.assert_close(second, first[[1, 0]])


@pytest.mark.parametrize("spec", VARIANTS, ids=IDS)
def test_the_gradient_is_that_of_finite_differences(spec: Any) -> None:
    batch = batch_of([[0, 2], [1], [2, 0, 1], [2]], scalars={"chosen": [1, 0, 0, 1]}, groups=["a", "a", "b", "b"])
    generator = torch.Generator().manual_seed(3)
    logits, reference = (torch.randn(7, 3, generator=generator) for _ in range(2))
    check_gradient(spec, batch, logits, reference)


@pytest.mark.parametrize(
    ("groups", "chosen", "found"),
    [
        (["a", ""], [1, 0], "its group holds chosen"),
        (["a", "a"], [1, 1], "its group holds chosen, chosen"),
        (["a", "a"], [0, 0], "its group holds rejected, rejected"),
    ],
)
def test_a_group_that_is_no_pair_is_refused(groups: list[str], chosen: list[float], found: str) -> None:
    step = step_of([[0], [1]], scalars={"chosen": chosen}, groups=groups)
    with pytest.raises(UserError, match=f"sample sample0: .* one chosen and one rejected .* {found}"):
        build_objective("simpo").coefficients(step)


def test_three_answers_are_no_pair() -> None:
    step = step_of([[0], [1], [1]], scalars={"chosen": [1, 0, 0]}, groups=["a"] * 3)
    with pytest.raises(UserError, match="its group holds chosen, rejected, rejected"):
        build_objective("simpo").coefficients(step)


def test_an_empty_answer_is_refused_and_its_side_is_named() -> None:
    chosen, rejected = step_of([[0], [1]], scalars={"chosen": [1, 0]}, groups=["a", "a"])
    silent = replace(rejected, target=np.zeros(2, np.bool_))
    with pytest.raises(UserError, match="sample sample1: its rejected answer has no trained token"):
        build_objective("cpo").coefficients([chosen, silent])


def test_a_sequence_that_is_no_side_of_a_pair_is_named() -> None:
    with pytest.raises(UserError, match="objective 'dpo': sample sample0 has no scalar 'chosen'"):
        build_objective("dpo").coefficients(step_of([[0]]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "dpo", "beta": 0}, "'beta' .*above 0"),
        ({"name": "robust_dpo", "label_smoothing": 0.5}, "'label_smoothing' .*below 0.5"),
        ({"name": "simpo", "reduction": "tokens"}, "no meaning for a loss with one value a group"),
    ],
)
def test_options_without_meaning_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_objective(spec)


def test_only_losses_with_a_reference_ask_for_one() -> None:
    assert [name for name in LOSSES if build_objective(name).needs_reference] == WITH_REFERENCE


def test_groups_that_do_not_count_need_not_be_pairs() -> None:
    """Preference pairs beside demonstrations: only the pairs are compared, and only they need `chosen`."""
    pair = step_of([[0], [1]], scalars={"chosen": [1, 0]}, groups=["a", "a"])
    pair = [replace(s, origin=np.full(len(s), Origin.ROLLOUT, np.uint8)) for s in pair]
    alone = replace(step_of([[2]])[0], origin=np.full(2, Origin.DEMONSTRATION, np.uint8), sample_id="demonstration")
    spec: list[Any] = [{"name": "simpo", "origins": ["rollout"]}, {"name": "nll", "origins": ["demonstration"]}]
    both, logprobs = build_objective(spec), torch.tensor([-0.3, -0.8, -0.5])
    step = [alone, *pair]
    batch = both.attach(collate(step), step, both.coefficients(step))
    (simpo,) = build_objective("simpo").terms
    expected = simpo.function(TokenScores(logprobs[1:], {}), collate(pair))[0]
    found = both.terms[0].function(TokenScores(logprobs, {}), batch)[0]
    assert batch.coefficients["0:simpo"].tolist() == [0, 1]
    assert found[1].item() == pytest.approx(expected[0].item())


# Steps and their cuts


def pairs_of(lengths: List[tuple[int, int]], seed: int = 0) -> list[Sequence]:
    rng = np.random.default_rng(seed)
    step = []
    for row, both in enumerate(lengths):
        for length, chosen in zip(both, (1.0, 0.0), strict=True):
            sequence = random_sequence(rng, length, f"sample{row}", trained=1.0, group=f"pair{row}")
            step.append(replace(sequence, scalars={"chosen": chosen}))
    return step


@pytest.fixture(scope="module")
def policy() -> Policy:
    """In float64, with another model as its reference."""
    policy = Policy(build("llama").double(), tokenizer())
    policy.reference = Reference.of(Policy(build("llama", seed=1).double(), tokenizer()))
    return policy


def gradient_of(policy: Policy, objective: Objective, step: list[Sequence], cut: list[list[int]]) -> Tensor:
    policy.model.zero_grad()
    rows = objective.coefficients(step)
    for part in cut:
        chosen = [step[index] for index in part]
        batch = objective.attach(collate(chosen), chosen, [rows[index] for index in part])
        objective.loss(policy, batch).value.backward()  # type: ignore[no-untyped-call]
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])


@pytest.mark.parametrize("spec", VARIANTS, ids=IDS)
def test_the_gradient_is_the_same_for_every_split_that_keeps_pairs(policy: Policy, spec: Any) -> None:
    step = pairs_of([(5, 9), (12, 4), (3, 3), (7, 6)])
    listed = [spec] if isinstance(spec, str) else [dict(spec)]
    objective = build_objective([*listed, {"name": "nll", "where": "chosen", "weight": 0.5}])
    assert objective.keeps_groups
    expected = gradient_of(policy, objective, step, [list(range(8))])
    for cut in ([[0, 1], [2, 3], [4, 5], [6, 7]], [[5, 0, 4, 1], [7, 6, 3, 2]]):
        found = gradient_of(policy, objective, step, cut)
        assert float((found - expected).norm()) <= 5e-7 * float(expected.norm())  # float32 log-probs


def test_metrics_are_means_over_pairs(policy: Policy) -> None:
    step = pairs_of([(5, 9), (12, 4)])
    objective = build_objective("simpo")
    loss = objective.loss(policy, objective.attach(collate(step), step, objective.coefficients(step)))
    batch = collate(step)
    means = batch.mean_by_sequence(policy.scores(batch).logprobs.detach())
    found = {name: tuple(map(float, pair)) for name, pair in loss.metrics.items()}
    assert found["chosen_logprob"] == (pytest.approx(float(means[0] + means[2]), rel=1e-5), 2.0)
    assert found["rejected_logprob"] == (pytest.approx(float(means[1] + means[3]), rel=1e-5), 2.0)
    margin = 2.0 * float(means[0] - means[1] + means[2] - means[3])
    assert found["reward_margin"] == (pytest.approx(margin, rel=1e-5), 2.0)
