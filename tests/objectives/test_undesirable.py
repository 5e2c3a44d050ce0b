"""Numbers from sheet 40."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from loops import small_loop, tiny_policy
from steps import random_step
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.func import functional_call

from posttrain.adaptation import adapters
from posttrain.data import Sequence
from posttrain.data.batch import Batch, Layout, Rows, collate
from posttrain.data.scores import Need, TokenScores
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import Objective, build_objective
from posttrain.objectives.undesirable import Direction
from posttrain.policy import Policy
from posttrain.training.loop import train
from posttrain.training.ranks import Ranks
from posttrain.training.step import StepResult, Stopwatch, accumulate_gradients, begin

STEP = random_step(0, [20, 7, 1, 33, 12])
OTHER = random_step(5, [9, 25, 14])


def spec(**options: Any) -> dict[str, Any]:
    return {"name": "lfu", "ascent_batch": "same", **options}


def lora(policy: Policy, dropout: float = 0.0) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return policy.adapted(adapters["lora"](policy.model, rank=4, dropout=dropout))


def full(name: str = "llama") -> Policy:
    return Policy(build(name), tokenizer())


def begun(policy: Policy, budget: int = 1000) -> Step:
    return begin(0, 10, 0.0, 0, policy=policy, token_budget=budget, ranks=Ranks(), draw=lambda: OTHER)


def accumulate(policy: Policy, objective: Objective, budget: int = 1000) -> StepResult:
    policy.model.zero_grad()
    return accumulate_gradients(
        policy, objective, STEP, budget, begun(policy, budget), Ranks(), Stopwatch(policy.device)
    )


def flat_gradient(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for _, p in policy.trainable_parameters() if p.grad is not None])


# --- by hand ---


@dataclass
class ScalarPolicy:
    """h = w x is the only state, and the logits are (h, -h)."""

    x: float = 2.0
    model: nn.Module = field(default_factory=nn.Module)

    def __post_init__(self) -> None:
        self.model.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def trainable_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()

    def states(self, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        w = (parameters or dict(self.trainable_parameters()))["w"]
        return ((w * self.x).expand(1, 2, 1),)

    def scores(
        self,
        batch: Batch,
        needs: tuple[Need, ...] = (),
        *,
        hidden: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> TokenScores:
        h = self.states(batch, parameters)[0][0, :1, 0] if hidden is None else hidden[:, 0]
        return TokenScores(torch.log_softmax(torch.stack([h, -h], -1), -1)[:, 0])

    def gradient(self, objective: Objective, sequences: list[Sequence]) -> dict[str, Tensor]:
        loss = objective.loss(self, attached(objective, sequences)).value
        return {"w": torch.autograd.grad(loss, self.model.w)[0]}


def attached(objective: Objective, sequences: list[Sequence]) -> Batch:
    return objective.attach(collate(sequences), sequences, objective.coefficients(sequences))


ONE = [Sequence(np.zeros(2, np.int32), np.array([False, True]), np.array([0, 1], np.uint8), "one")]


def scalar_loss(**options: Any) -> tuple[ScalarPolicy, Any]:
    policy, objective = ScalarPolicy(), build_objective(spec(**options))
    step = Step(policy=policy, gradient=policy.gradient)
    objective.prepare(ONE, step)
    return policy, objective.loss(policy, replace(attached(objective, ONE), step=step))


def test_a_scalar_model_has_the_numbers_of_the_sheet() -> None:
    policy, loss = scalar_loss(log_rise=True)
    found = {name: float(total) for name, (total, _) in loss.metrics.items()}
    assert found["nll"] == pytest.approx(0.126928, abs=1e-6)
    assert found["ascent_norm"] == pytest.approx(0.476812, abs=1e-6)
    assert found["nll"] + found["rise"] == pytest.approx(0.183901, abs=1e-6)
    assert found["consistency"] == pytest.approx(0.04, abs=1e-6)
    assert loss.value.item() == pytest.approx(0.326928, abs=1e-6)
    loss.value.backward()
    assert policy.model.w.grad.item() == pytest.approx(-4.476812, abs=1e-5)


@pytest.mark.parametrize("off", [{"alpha": 0.0}, {"consistency_weight": 0.0}], ids=str)
def test_without_alpha_or_weight_it_is_plain_fine_tuning(off: dict[str, float]) -> None:
    policy, loss = scalar_loss(**off)
    loss.value.backward()
    assert loss.value.item() == pytest.approx(0.126928, abs=1e-6)
    assert policy.model.w.grad.item() == pytest.approx(-0.476812, abs=1e-6)


def test_the_step_has_length_one_over_all_weights_together() -> None:
    direction = Direction.of({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    assert (direction.unit["a"].item(), direction.unit["b"].item()) == pytest.approx((0.6, 0.8))
    assert direction.norm.item() == 5
    assert not Direction.of({"a": torch.zeros(2)}).unit["a"].any()
    assert Direction.of({}).norm.item() == 0


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("mse", [0.025, 0.045]), ("squared", [0.05, 0.09]), ("l1", [0.15, 0.15]), ("l2", [0.05**0.5, 0.3])],
)
def test_distances_of_two_tokens(distance: str, expected: list[float]) -> None:
    clean, other = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.1, 1.8], [0.3, 1.0]])
    (term,) = build_objective(spec(distance=distance)).terms
    found = term.forward._distance(clean, other)  # type: ignore[union-attr]
    torch.testing.assert_close(found, torch.tensor(expected))


# --- models ---


@dataclass
class Counted:
    """The wrapped model's own states, shifted by hand: an implementation of its own."""

    policy: Policy
    delta: Mapping[str, Tensor]

    def states(self, rows: Rows, shift: float) -> tuple[Tensor, ...]:
        model = copy.deepcopy(self.policy.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.delta:
                    parameter.add_(shift * self.delta[name])
        return model(input_ids=rows.input_ids, output_hidden_states=True).hidden_states  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma3"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_consistency_is_that_of_the_models_own_hidden_states(name: str, adapted: bool) -> None:
    policy = lora(full(name)) if adapted else full(name)
    policy.model.eval()
    objective = build_objective(spec(alpha=0.3))
    step = begun(policy)
    objective.prepare(STEP, step)
    unit = step.shared["undesirable/same"].unit
    loss = objective.loss(policy, replace(attached(objective, STEP), step=step))
    batch = collate(STEP, pad_id=258)
    by_hand = Counted(policy, unit)
    clean, other = (by_hand.states(batch.rows, shift) for shift in (0.0, 0.3))
    expected = []
    for row, sequence in enumerate(STEP):
        for t in np.flatnonzero(sequence.target):
            expected.append(
                np.mean([(a[row, t] - b[row, t]).square().mean().item() for a, b in zip(clean, other, strict=True)])
            )
    total, count = loss.metrics["consistency"]
    assert int(count) == len(expected)
    assert float(total / count) == pytest.approx(np.mean(expected), rel=1e-4)
    assert float(sum(values.square().sum() for values in unit.values())) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("distance", ["mse", "l2", "kl", "loss"])
def test_gradients_are_those_of_finite_differences(adapted: bool, distance: str) -> None:
    """Along random directions in the space of the weights, with the clean outputs and δ held fixed. (Of these models
    gpt2 alone computes all of its states in float64.)"""
    policy = lora(full("gpt2")) if adapted else full("gpt2")
    policy.model.double()
    objective, step = build_objective(spec(distance=distance, consistency_weight=2.0, alpha=0.2)), begun(policy)
    objective.prepare(STEP, step)
    batch = replace(attached(objective, STEP), step=step)
    objective.loss(policy, batch).value.backward()  # type: ignore[no-untyped-call]
    parameters = dict(policy.trainable_parameters())
    base = {name: p.detach().clone() for name, p in parameters.items()}
    unit = step.shared["undesirable/same"].unit
    logprobs, states = outputs(policy, batch, base)

    def value(moved: Mapping[str, Tensor]) -> float:
        plain = outputs(policy, batch, moved)[0]
        far, far_states = outputs(policy, batch, {n: p + 0.2 * unit[n] if n in unit else p for n, p in moved.items()})
        if distance == "loss":
            consistency = -far[range(len(far)), batch.tokens]
        elif distance == "kl":
            consistency = (logprobs.exp() * (logprobs - far)).sum(-1)
        else:
            gaps = torch.stack(far_states) - torch.stack(states)
            consistency = (gaps.square().mean(-1) if distance == "mse" else gaps.norm(dim=-1)).mean(0)
        losses = -plain[range(len(plain)), batch.tokens] + 2.0 * consistency
        return float((batch.coefficients["0:lfu"] * losses).sum())

    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        way = {name: torch.randn(p.shape, generator=rng, dtype=p.dtype) for name, p in base.items()}
        ends = [value({name: base[name] + sign * 1e-5 * way[name] for name in base}) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / 2e-5
        found = sum(float((p.grad * way[name]).sum()) for name, p in parameters.items() if p.grad is not None)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@torch.no_grad()
def outputs(policy: Policy, batch: Batch, parameters: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Log-probs `[N, V]` that predict the targets, and each layer's states `[N, d]` at them, of the model itself."""
    options = {"input_ids": batch.rows.input_ids, "output_hidden_states": True}
    found = functional_call(policy.model, dict(parameters), (), options)
    states = [layer.flatten(0, 1)[batch.where + 1] for layer in found.hidden_states]
    return found.logits.flatten(0, 1)[batch.where].log_softmax(-1), states


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_weights_and_gradients_of_the_step_are_untouched_bit_for_bit(adapted: bool) -> None:
    policy = lora(full()) if adapted else full()
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    parameter = next(p for _, p in policy.trainable_parameters())
    parameter.grad = torch.full_like(parameter, 7.0)
    build_objective(spec()).prepare(STEP, begun(policy))
    assert (parameter.grad == 7).all()
    assert sum(p.grad is not None for p in policy.model.parameters()) == 1
    accumulate(policy, build_objective(spec(log_rise=True)))
    assert all(torch.equal(before[name], value) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_with_weight_0_the_update_is_that_of_plain_likelihood_bit_for_bit(adapted: bool) -> None:
    found = []
    for objective in (spec(consistency_weight=0.0), spec(alpha=0.0), "nll"):
        policy = lora(full()) if adapted else full()
        accumulate(policy, build_objective(objective))
        found.append(flat_gradient(policy))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    "options", [{}, {"ascent_batch": "independent"}, {"distance": "kl"}, {"distance": "loss"}], ids=str
)
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(options: dict[str, Any]) -> None:
    policy = full()
    policy.model.double()
    found = []
    for budget, layout in ((1000, "padded"), (10, "padded"), (60, "packed")):
        policy.layout = layout
        accumulate(policy, build_objective(spec(**options)), budget)
        found.append(flat_gradient(policy))
    for other in found[1:]:
        assert float((other - found[0]).norm()) < 1e-6 * float(found[0].norm())


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_states_are_those_at_the_target_tokens(layout: Layout) -> None:
    policy = full()
    batch = collate(STEP, pad_id=258, layout=layout)
    embeddings = policy.states(batch)[0].flatten(0, 1)[batch.where + 1]
    assert torch.equal(embeddings, policy.embed(batch.tokens))


def test_the_last_states_are_those_that_the_head_reads() -> None:
    for name in ("llama", "qwen2", "gpt2", "gemma3", "phi3", "qwen3_moe"):
        policy, batch = full(name), collate(STEP, pad_id=258)
        hidden = policy.states(batch)[-1].flatten(0, 1)[batch.where]
        assert torch.equal(policy.scores(batch, hidden=hidden).logprobs, policy.scores(batch).logprobs)


def test_the_ascent_batch_is_another_one_and_its_step_makes_the_loss_rise() -> None:
    policy = full()
    directions = []
    for batch in ("same", "independent"):
        step = begun(policy)
        build_objective(spec(ascent_batch=batch)).prepare(STEP, step)
        directions.append(torch.cat([v.flatten() for v in step.shared[f"undesirable/{batch}"].unit.values()]))
    assert float(directions[0] @ directions[1]) < 0.9
    assert accumulate(policy, build_objective(spec(log_rise=True))).metrics["rise"] > 0


def test_fresh_adapters_are_perturbed_in_their_second_matrix_alone() -> None:
    policy = lora(full())
    step = begun(policy)
    build_objective(spec()).prepare(STEP, step)
    unit = step.shared["undesirable/same"].unit
    assert all(values.any() == ("lora_B" in name) for name, values in unit.items())
    assert any("lora_B" in name for name in unit)


def test_fewer_layers_may_be_compared_and_embeddings_under_an_adapter_never_differ() -> None:
    policy = lora(full())
    first = accumulate(policy, build_objective(spec(layers=[0, 0]))).metrics["consistency"]
    some = accumulate(policy, build_objective(spec(layers=[1, 2]))).metrics["consistency"]
    every = accumulate(policy, build_objective(spec())).metrics["consistency"]
    assert first == 0
    assert every == pytest.approx(some * 2 / 3, rel=1e-5)
    with pytest.raises(UserError, match=r"'layers' is \[1, 9\], but there are states 0 \(embeddings\) to 2"):
        accumulate(policy, build_objective(spec(layers=[1, 9])))


def test_dropout_is_the_same_in_both_passes() -> None:
    policy = lora(full(), dropout=0.5)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    policy.model.train()
    assert 0 < accumulate(policy, build_objective(spec(alpha=1e-4))).metrics["consistency"] < 1e-4


def test_what_cannot_be_perturbed_is_refused() -> None:
    policy = full()
    policy.model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match=r"'lfu' cannot be used with model\.gradient_checkpointing"):
        accumulate(policy, build_objective(spec()))
    policy = full()
    policy.model.bfloat16()
    with pytest.raises(UserError, match=r"16-bit weights is rounded away; train with model\.dtype=mixed"):
        accumulate(policy, build_objective(spec()))


def test_a_loop_trains_with_it_and_draws_its_second_batch(tmp_path: Any) -> None:
    for policy in (tiny_policy(), tiny_policy(dropout=0.0)):
        loop = small_loop(tmp_path / str(id(policy)), steps=3, objective=build_objective("lfu"), policy=policy)
        assert train(loop).last["consistency"] > 0


def test_weights_cut_over_ranks_are_refused() -> None:
    policy = ScalarPolicy()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        policy.model.w = nn.Parameter(distribute_tensor(torch.ones(2), mesh))
        with pytest.raises(UserError, match="cannot do so while they are cut over ranks: train with sharding=none"):
            build_objective(spec()).prepare(ONE, Step(policy=policy))
    finally:
        dist.destroy_process_group()
