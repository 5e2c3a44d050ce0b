"""Numbers from sheet 24."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from gradients import batch_of, check_gradient, mean_loss, step_of
from steps import random_step
from torch import Tensor

from posttrain.adaptation import adapters
from posttrain.data import Sequence
from posttrain.data.batch import Batch, Layout, collate
from posttrain.data.scores import Need, TokenScores
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import Objective, Term, build_objective
from posttrain.objectives.intuitive import Propagation, TemporalResidual, discounted_sums
from posttrain.objectives.reduction import Reduction
from posttrain.policy import Policy

NLL = [2.0, 1.0, 0.5]
LOGITS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).double() * 2
TOKENS = [[0, 3, 1, 4], [4], [2, 2]]
STEP = random_step(0, [9, 5, 14])


def loss_of(nll: list[float], **options: Any) -> float:
    batch = batch_of([[0] * len(nll)])
    return float(Propagation(**options).loss(torch.tensor(nll, dtype=torch.float64), batch))


def slope(nll: list[float], **options: Any) -> list[float]:
    leaf = torch.tensor(nll, dtype=torch.float64, requires_grad=True)
    Propagation(**options).loss(leaf, batch_of([[0] * len(nll)])).sum().backward()
    return leaf.grad.tolist()  # type: ignore[union-attr]


def term_of(**options: Any) -> Objective:
    """The propagation alone, on the log-probs of plain logits."""
    function = Propagation(**options).loss
    return Objective(
        Term("ift", lambda s, b: function(-s.logprobs, b), level="sequence", reduction=Reduction("sequences"))
    )


# --- the weights ---


@pytest.mark.parametrize(
    ("decay", "loss", "weights"),
    [
        (0.0, 1.166667, [1, 1, 1]),
        (0.5, 1.542857, [1.8, 0.857143, 0.342857]),
        (0.95, 1.586143, [1.897931, 0.823064, 0.279005]),
        (1.0, 1.590909, [1.909091, 0.818182, 0.272727]),
    ],
)
def test_the_loss_and_its_weights_have_the_numbers_of_the_sheet(
    decay: float, loss: float, weights: list[float]
) -> None:
    """Checks 1 to 4. With weights held fixed, the gradient is w/N."""
    assert loss_of(NLL, decay=decay) == pytest.approx(loss, abs=1e-6)
    fixed = slope(NLL, decay=decay, detach="weights")
    assert [3 * value for value in fixed] == pytest.approx(weights, abs=1e-5)


def test_the_gradient_through_the_weights_is_negative_at_the_tail() -> None:
    """Check 5."""
    assert slope(NLL, decay=0.5) == pytest.approx([0.704490, 0.213878, -0.160000], abs=1e-6)
    assert slope(NLL, decay=0.5, detach="weights") == pytest.approx([0.6, 0.285714, 0.114286], abs=1e-6)


def test_a_normaliser_held_fixed_leaves_the_gradient_of_the_sums() -> None:
    """S = [2.625, 1.25, .5], Σ S = 4.375; ∂ Σ S ℓ / ∂ ℓ_t = S_t + Σ_{i≤t} γ^{t-i} ℓ_i, P = [2, 2, 1.5]."""
    found = slope(NLL, decay=0.5, detach="normaliser")
    assert found == pytest.approx([4.625 / 4.375, 3.25 / 4.375, 2.0 / 4.375])


def test_equal_losses_weigh_early_tokens_more_and_cost_the_same() -> None:
    """Check 6."""
    assert loss_of([1.0, 1.0, 1.0]) == pytest.approx(1)
    fixed = slope([1.0, 1.0, 1.0], detach="weights")
    assert [3 * value for value in fixed] == pytest.approx([1.474795, 1.008186, 0.517019], abs=1e-6)


def test_the_papers_equation_is_a_double_sum_in_which_later_tokens_weigh_more() -> None:
    """Check 7: 2·1 + 1·2 + .5·3."""
    assert loss_of(NLL, reading="equation") == pytest.approx(5.5)
    assert slope(NLL, reading="equation") == [1, 2, 3]


def test_the_papers_algorithm_discounts_by_the_distance_from_the_end() -> None:
    """w ∝ [.25 · 3.5, .5 · 1.5, .5]: (2 · .875 + .75 + .25) / 2.125."""
    assert loss_of(NLL, reading="algorithm", decay=0.5) == pytest.approx(2.75 / 2.125)
    assert loss_of(NLL, reading="algorithm", decay=1.0) == pytest.approx(loss_of(NLL, decay=1.0))


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"propagate": "mask"}, [1.75, 1.5, 1]),
        ({"propagate": "nll"}, [2.625, 1.25, 0.5]),
        ({"norm": "l2"}, [2.625**2, 1.25**2, 0.5**2]),
        ({"norm": "log"}, np.log1p([2.625 / 3, 1.25 / 3, 0.5 / 3])),
        ({"norm": "log", "propagate": "nll"}, np.log1p([2.625, 1.25, 0.5])),
        ({"norm": "softmax"}, np.exp([2.625 / 3, 1.25 / 3, 0.5 / 3])),
        ({"side": "earlier"}, 1 / np.array([3.5, 3.5, 3.0])),
        ({"side": "earlier", "norm": "l2"}, 1 / np.array([3.5, 3.5, 3.0]) ** 2),
        ({"side": "earlier", "norm": "log"}, 1 / np.log1p(np.array([3.5, 3.5, 3.0]) / 3)),
        ({"side": "earlier", "norm": "softmax"}, np.exp(3 / np.array([3.5, 3.5, 3.0]))),
        ({"side": "earlier", "propagate": "mask"}, 1 / np.array([2, 2.5, 2.75])),
    ],
    ids=str,
)
def test_other_sums_sides_and_norms_weigh_as_written(options: dict[str, Any], weights: Any) -> None:
    """By hand at γ = .5: S = [2.625, 1.25, .5], P = [2, 2, 1.5] and min P = 1.5 (ones: [1, 1.5, 1.75])."""
    expected = np.array(weights) / np.sum(weights)
    assert slope(NLL, decay=0.5, detach="weights", **options) == pytest.approx(expected.tolist())
    assert loss_of(NLL, decay=0.5, **options) == pytest.approx(float(expected @ np.array(NLL)))


@pytest.mark.parametrize("side", ["later", "earlier"])
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_sums_stay_within_a_turn_and_its_sequence(side: Any, decay: float) -> None:
    """Against the double loop, on sequences with gaps between their targets."""
    batch = collate(random_step(3, [30, 1, 7, 12], trained=0.7))
    values = torch.rand(len(batch.tokens), dtype=torch.float64)
    expected = torch.zeros_like(values)
    at = list(zip(batch.sequence.tolist(), batch.position.tolist(), strict=True))
    index = {place: i for i, place in enumerate(at)}
    move = 1 if side == "later" else -1
    for i, (sequence, position) in enumerate(at):
        steps = 0
        while (place := (sequence, position + move * steps)) in index:
            expected[i] += decay**steps * values[index[place]]
            steps += 1
    torch.testing.assert_close(discounted_sums(values, batch, decay, side), expected)


@pytest.mark.parametrize("side", ["later", "earlier"])
@pytest.mark.parametrize("norm", ["l1", "l2", "softmax", "log"])
@pytest.mark.parametrize("detach", ["nothing", "normaliser", "weights"])
def test_gradients_are_those_of_finite_differences(side: Any, norm: Any, detach: Any) -> None:
    check_gradient(term_of(side=side, norm=norm, detach=detach), batch_of(TOKENS), LOGITS)


@pytest.mark.parametrize(
    "options", [{"reading": "algorithm"}, {"reading": "equation"}, {"decay": 0}, {"decay": 1}], ids=str
)
def test_gradients_of_other_readings_are_those_of_finite_differences(options: Any) -> None:
    check_gradient(term_of(**options), batch_of(TOKENS), LOGITS)


@pytest.mark.parametrize("side", ["later", "earlier"])
@pytest.mark.parametrize("norm", ["l1", "l2", "softmax", "log"])
def test_a_loss_of_zero_has_a_gradient_that_is_a_number(side: Any, norm: Any) -> None:
    assert loss_of([0.0, 0.0], side=side, norm=norm) == 0
    assert np.isfinite(slope([0.0, 0.0], side=side, norm=norm)).all()
    assert np.isfinite(slope([50.0, 0.0, 1e3], side=side, norm=norm, propagate="nll")).all()


def test_sequences_without_targets_cost_nothing() -> None:
    loss = Propagation().loss(torch.zeros(0), batch_of([[], []]))
    assert loss.tolist() == [0, 0]
    step = step_of([[0, 1], []])
    logits = LOGITS[:2].float()
    alone = mean_loss(term_of(), step[:1], logits)
    torch.testing.assert_close(mean_loss(term_of(), step, logits), alone)


def test_sequences_weigh_the_same_whatever_their_lengths() -> None:
    step = step_of(TOKENS)
    every = Propagation().loss(-LOGITS.log_softmax(-1)[range(7), [0, 3, 1, 4, 4, 2, 2]], collate(step))
    torch.testing.assert_close(mean_loss(term_of(), step, LOGITS).double(), every.mean(), atol=1e-6, rtol=0)


# --- the mixing ---


@dataclass
class Recording:
    """A policy whose embeddings are the tokens' own numbers, and which predicts token + 1 with the log-prob -1."""

    read: list[Tensor] = field(default_factory=list)
    graphs: list[bool] = field(default_factory=list)

    def embed(self, ids: Tensor) -> Tensor:
        return ids[..., None].double()

    def scores(self, batch: Batch, needs: tuple[Need, ...] = (), embeddings: Tensor | None = None) -> TokenScores:
        assert embeddings is not None
        self.read.append(embeddings[..., 0])
        self.graphs.append(torch.is_grad_enabled())
        extra = {need.name: batch.tokens + 1 for need in needs}
        return TokenScores(torch.full((len(batch.tokens),), -float(len(self.read))).double(), extra)


def forward_of(spec: dict[str, Any]) -> TemporalResidual:
    forward = build_objective(spec).terms[0].forward
    assert isinstance(forward, TemporalResidual)
    return forward


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_every_target_token_and_no_other_is_mixed_with_its_own_prediction(layout: Layout) -> None:
    """The prediction made at position t takes the place of the token at t + 1; prompts and padding stay."""
    policy, step = Recording(), step_of([[10, 20, 30], [40]])
    scores = forward_of({"name": "ift", "mix": 0.25})(policy, collate(step, pad_id=7, layout=layout), ())
    rows = [[0, 10.25, 20.25, 30.25], [0, 40.25, 7, 7]] if layout == "padded" else [[0, 10.25, 20.25, 30.25, 0, 40.25]]
    assert policy.read[1].tolist() == rows
    assert policy.graphs == [False, True]
    assert scores["gold_logprobs"].tolist() == [-1] * 4
    assert scores.logprobs.tolist() == [-2] * 4
    assert scores["mix"].item() == 0.25


def test_without_mixing_there_is_one_pass_on_the_demonstration_itself() -> None:
    policy = Recording()
    forward_of({"name": "ift", "mix": 0.0})(policy, collate(step_of([[10, 20]])), ())
    assert [read.tolist() for read in policy.read] == [[[0, 10, 20]]]


def total(policy: Policy, spec: Any, step: list[Sequence], layout: Layout = "padded", seed: int = 3) -> Tensor:
    """What a step costs, with graph."""
    objective = build_objective(spec)
    batch = objective.attach(collate(step, pad_id=258, layout=layout), step, objective.coefficients(step))
    return objective.loss(policy, replace(batch, step=Step(seed=seed))).value


def gradients(policy: Policy, spec: Any, step: list[Sequence], **more: Any) -> dict[str, Tensor]:
    policy.model.zero_grad(set_to_none=True)
    total(policy, spec, step, **more).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


PLAIN = {"name": "nll", "reduction": "sequences"}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "gpt2"])
def test_without_mixing_and_propagation_it_is_fine_tuning(architecture: str) -> None:
    """Check 8, with tied, scaled and position-added embeddings."""
    policy = Policy(build(architecture), tokenizer())
    none = {"name": "ift", "mix": 0.0, "decay": 0.0, "embeddings": "trained"}
    torch.testing.assert_close(total(policy, none, STEP), total(policy, PLAIN, STEP))
    found, expected = (gradients(policy, spec, STEP) for spec in (none, PLAIN))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_scores_are_those_of_the_model_on_embeddings_mixed_by_hand(architecture: str, layout: Layout) -> None:
    model = build(architecture)
    policy = Policy(model, tokenizer(), layout=layout)
    scores = forward_of({"name": "ift", "mix": 0.6})(policy, collate(STEP, pad_id=258, layout=layout), ())
    expected, predicted = [], []
    for sequence in STEP:
        ids = torch.from_numpy(sequence.tokens).long()
        table = model.get_input_embeddings()
        ahead = model(input_ids=ids[None]).logits[0].argmax(-1)
        chosen = torch.cat([ids[:1], ahead[:-1]])
        mixed = torch.where(torch.from_numpy(sequence.target), chosen, ids)
        logprobs = model(inputs_embeds=(0.4 * table(ids) + 0.6 * table(mixed))[None]).logits[0].log_softmax(-1)
        at = sequence.target.nonzero()[0]
        expected += [logprobs[t - 1, sequence.tokens[t]] for t in at]
        predicted += [int(chosen[t]) for t in at]
    assert scores["predictions"].tolist() == predicted
    torch.testing.assert_close(scores.logprobs, torch.stack(expected), rtol=1e-4, atol=2e-5)


def test_a_model_that_predicts_the_demonstration_is_not_moved_by_mixing() -> None:
    """Check 9: targets are what the model itself says."""
    policy = Policy(build("llama"), tokenizer())
    tokens = [1, 2, 3]
    for _ in range(8):
        tokens.append(int(policy.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    (step,) = step_of([tokens[1:]])
    own = replace(step, tokens=np.array(tokens, np.int32), target=np.arange(11) >= 3)
    losses = [float(total(policy, {"name": "ift", "mix": mix}, [own]).detach()) for mix in (0.0, 0.2, 1.0)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("qwen2", True), ("gemma3", True)])
def test_fixed_embeddings_are_not_trained_but_a_tied_head_is(architecture: str, tied: bool) -> None:
    policy = Policy(build(architecture), tokenizer())
    table = policy.model.get_input_embeddings().weight
    assert (table is policy.model.get_output_embeddings().weight) == tied
    found = gradients(policy, "ift", STEP)
    assert len(found) == len(list(policy.model.parameters())) - (not tied)
    assert (table.grad is not None) == tied
    gradients(policy, {"name": "ift", "embeddings": "trained"}, STEP)
    assert table.grad is not None
    read = {int(token) for sequence in STEP for token in sequence.tokens}
    assert table.grad[sorted(read)[:3]].any()


def test_adapters_are_trained_and_the_base_is_not() -> None:
    model = build("llama").requires_grad_(False)
    policy = Policy(adapters["lora"](model, rank=2), tokenizer())
    found = gradients(policy, "ift", STEP)
    assert found
    assert all("lora" in name for name in found)


@pytest.mark.parametrize(
    ("options", "progress", "mix"),
    [
        ({}, 0.0, 0.2),
        ({"mix_start": 0.0}, 0.0, 0.0),
        ({"mix_start": 0.0}, 0.05, 0.1),
        ({"mix_start": 0.0}, 0.1, 0.2),
        ({"mix_start": 0.0}, 0.9, 0.2),
        ({"mix_start": 0.6, "mix_warmup": 1.0}, 0.5, 0.4),
        ({"mix_start": 0.6, "mix_warmup": 0.0}, 0.0, 0.2),
    ],
    ids=str,
)
def test_the_share_rises_over_the_warm_up(options: dict[str, Any], progress: float, mix: float) -> None:
    assert forward_of({"name": "ift", **options}).share(progress, seed=1) == pytest.approx(mix)


def test_a_disturbed_share_is_drawn_for_each_step_and_stays_a_share() -> None:
    forward = forward_of({"name": "ift", "mix": 0.5, "mix_noise": 0.5})
    drawn = [forward.share(0.5, seed) for seed in range(400)]
    assert drawn == [forward.share(0.5, seed) for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.04)
    assert np.std(drawn) == pytest.approx(0.25, abs=0.03)
    assert 0 <= min(drawn) < 0.02
    assert 0.98 < max(drawn) <= 1


def predictions(**options: Any) -> Tensor:
    policy = Policy(build("llama"), tokenizer())
    batch = replace(collate(STEP, pad_id=258), step=Step(seed=int(options.pop("seed", 1))))
    found: Tensor = forward_of({"name": "ift", **options})(policy, batch, ())["predictions"]
    return found


def test_the_next_best_token_or_a_draw_can_stand_for_the_prediction() -> None:
    best, second = predictions(), predictions(prediction_rank=2)
    assert (best != second).all()
    drawn = predictions(prediction_temperature=0.7)
    assert torch.equal(drawn, predictions(prediction_temperature=0.7))
    assert not torch.equal(drawn, predictions(prediction_temperature=0.7, seed=2))
    assert torch.equal(predictions(prediction_temperature=1e-3), best)


def test_metrics_tell_the_two_passes_apart() -> None:
    policy = Policy(build("llama"), tokenizer())
    objective = build_objective({"name": "ift", "mix": 0.5})
    batch = objective.attach(collate(STEP, pad_id=258), STEP, objective.coefficients(STEP))
    metrics = {name: float(a / b) for name, (a, b) in objective.loss(policy, batch).metrics.items() if b is not None}
    plain = -policy.scores(batch).logprobs.detach().mean()
    assert metrics["gold_nll"] == pytest.approx(float(plain), rel=1e-5)
    assert abs(metrics["mixed_nll"] - metrics["gold_nll"]) > 1e-3
    assert metrics["mix"] == 0.5
    assert 0 <= metrics["predicted"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": 1.2}, "option 'mix'"),
        ({"decay": -0.1}, "option 'decay'"),
        ({"side": "left"}, "option 'side'"),
        ({"prediction_rank": 0}, "option 'prediction_rank'"),
        ({"embedding_noise": 5.0}, "has a forward pass of its own"),
        ({"reduction": "tokens"}, "no meaning for a loss with one value a sequence"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_objective({"name": "ift", **options})
