"""Advantages by TRL's own trainers, RLOO's loss, and the formulas of its PPOTrainer (gone since TRL 1.13)."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from gradients import gradient, mean_loss, step_of
from torch import Tensor

from posttrain.advantages import Outcomes, build_advantage
from posttrain.data.batch import collate
from posttrain.data.scores import TokenScores
from posttrain.objectives import build_objective

LENGTHS = (2, 3, 1, 4)
TOKENS = [[0, 1], [2, 0, 1], [2], [1, 1, 0, 2]]
MASK = torch.tensor([[t < size for t in range(max(LENGTHS))] for size in LENGTHS])


def padded(values: Any) -> Tensor:
    """Flat values of the tokens as rows `[S, R]` with zeros behind each."""
    flat = torch.as_tensor(np.concatenate(values) if isinstance(values, list) else values)
    return torch.zeros(MASK.shape, dtype=flat.dtype).masked_scatter(MASK, flat)


def ragged(values: Tensor) -> list[np.ndarray[Any, Any]]:
    return [part.double().numpy() for part in values.split(LENGTHS)]


@pytest.mark.parametrize(
    ("trainer", "config", "options", "advantage"),
    [
        ("RLOOTrainer", "RLOOConfig", {}, "leave_one_out"),
        ("GRPOTrainer", "GRPOConfig", {}, {"name": "group", "eps": 1e-4}),
        ("GRPOTrainer", "GRPOConfig", {"scale_rewards": "none"}, {"name": "group", "std": "none"}),
        ("GRPOTrainer", "GRPOConfig", {"scale_rewards": "batch"}, {"name": "group", "std": "batch", "eps": 1e-4}),
    ],
    ids=["RLOO", "GRPO", "Dr.GRPO", "batch"],
)
def test_advantages_are_those_that_trls_trainers_learn_from(
    trainer: str, config: str, options: dict[str, Any], advantage: Any, tmp_path: Any
) -> None:
    trl = pytest.importorskip("trl", reason="TRL is an extra")
    datasets = pytest.importorskip("datasets")
    rewards: list[float] = []
    learned: list[Tensor] = []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        generator = np.random.default_rng(len(rewards))
        found: list[float] = generator.choice([0.0, 0.25, 1.0, -2.0], len(completions)).tolist()
        found[:4] = [1.0] * 4  # a group in which all are worth the same
        rewards.extend(found)
        return found

    class Watched(getattr(trl, trainer)):  # type: ignore[misc]
        def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
            learned.append(inputs["advantages"].clone())
            return super()._compute_loss(model, inputs)

    settings = getattr(trl, config)(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        bf16=False,
        beta=0.0,
        max_steps=1,
        per_device_train_batch_size=12,
        num_generations=4,
        max_completion_length=3,
        shuffle_dataset=False,
        save_strategy="no",
        **options,
    )
    data = datasets.Dataset.from_list([{"prompt": text} for text in ("one", "two", "three")])
    model = build("qwen2")
    made = Watched(model=model, reward_funcs=reward, args=settings, train_dataset=data, processing_class=tokenizer())
    made.train()
    values = np.array(rewards[:12])
    group = np.repeat([0, 1, 2], 4)
    columns = build_advantage(advantage)(Outcomes(values, group, np.ones(12, np.int64)))
    ours = np.concatenate(columns["advantage"])
    np.testing.assert_allclose(np.sort(ours), np.sort(torch.cat(learned).numpy()), atol=1e-5)


def test_the_gradient_of_rloo_is_that_of_trl() -> None:
    trl = pytest.importorskip("trl", reason="TRL is an extra")
    generator = torch.Generator().manual_seed(0)
    logits, advantages = torch.randn(10, 3, generator=generator), torch.randn(4, generator=generator)
    flat = torch.tensor([token for tokens in TOKENS for token in tokens])[:, None]

    def by_trl(leaf: Tensor) -> Tensor:
        logprobs = padded(leaf.log_softmax(-1).gather(-1, flat).squeeze(-1))
        trainer = SimpleNamespace(
            epsilon_low=0.2,
            epsilon_high=0.2,
            aux_loss_enabled=False,
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(gather=lambda value: value, reduce=lambda value, reduction: value),
            _metrics={"train": defaultdict(list)},
            _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(MASK.shape), None),
        )
        inputs = {
            "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
            "prompt_mask": torch.ones(4, 1, dtype=torch.long),
            "completion_ids": torch.zeros(MASK.shape, dtype=torch.long),
            "completion_mask": MASK.float(),
            "advantages": advantages,
            "old_logps": (logprobs * MASK).sum(1).detach(),
        }
        loss: Tensor = trl.RLOOTrainer._compute_loss(trainer, None, inputs)
        return loss

    columns = {"advantage": [[float(value)] * size for value, size in zip(advantages, LENGTHS, strict=True)]}
    step = step_of(TOKENS, columns=columns)

    def by_us(leaf: Tensor) -> Tensor:
        return mean_loss({"name": "reinforce", "reduction": {"constant": 1}}, step, leaf)

    torch.testing.assert_close(gradient(by_us, logits), gradient(by_trl, logits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_generalised_advantages_are_those_of_trls_ppo(gamma: float, lam: float) -> None:
    """A = Σ_l (γλ)^l δ_{t+l} over padded rows, returns A + V, then whitened over all tokens (unbiased variance)."""
    generator = torch.Generator().manual_seed(1)
    values, penalty = (torch.randn(10, generator=generator).double() for _ in range(2))
    scores = torch.randn(4, generator=generator).double()
    rows, rewards = padded(values), padded(penalty)
    rewards[torch.arange(4), torch.tensor(LENGTHS) - 1] += scores
    delta = rewards + gamma * torch.nn.functional.pad(rows, (0, 1))[:, 1:] - rows
    steps = torch.arange(max(LENGTHS))
    power = (steps[:, None] - steps).clamp(min=0)
    discount = torch.where(steps[:, None] >= steps, (gamma * lam) ** power, 0.0).double()
    raw = (delta @ discount)[MASK]
    expected = (raw - raw.mean()) * torch.rsqrt(raw.var() + 1e-8)

    columns = build_advantage({"name": "gae", "gamma": gamma, "lam": lam})(
        Outcomes(
            scores.numpy(),
            np.arange(4),
            np.array(LENGTHS),
            token_rewards=ragged(penalty),
            values=ragged(values),
        )
    )
    np.testing.assert_allclose(np.concatenate(columns["advantage"]), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.concatenate(columns["return"]), (raw + values).numpy(), atol=1e-5)


def test_the_losses_of_policy_and_critic_are_those_of_trls_ppo() -> None:
    """Means over tokens of max(-A r, -A clip(r)), and by `vf_coef` of ½ max((V - R)², (clip(V) - R)²)."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(10, 3, generator=generator)
    old, advantage, values, old_values, returns = (torch.randn(10, generator=generator) for _ in range(5))
    flat = torch.tensor([token for tokens in TOKENS for token in tokens])
    old_logprobs = logits.log_softmax(-1)[range(10), flat] + 0.4 * old
    old_values = values + 0.4 * old_values
    named = {"advantage": advantage, "old_logprobs": old_logprobs, "old_values": old_values, "return": returns}
    step = step_of(TOKENS, columns={name: [p.tolist() for p in c.split(LENGTHS)] for name, c in named.items()})
    coefficient = 0.1
    objective = build_objective(
        [{"name": "ppo", "reduction": "tokens"}, {"name": "value", "weight": coefficient, "reduction": "tokens"}]
    )

    class Given:
        def __init__(self, leaf: Tensor, judged: Tensor) -> None:
            self.leaf, self.judged = leaf, judged

        def scores(self, batch: Any, needs: Any = ()) -> TokenScores:
            return TokenScores(self.leaf.log_softmax(-1)[range(10), batch.tokens], {"values": self.judged})

    def by_us(leaf: Tensor, judged: Tensor) -> Tensor:
        batch = objective.attach(collate(step), step, objective.coefficients(step))
        return objective.loss(Given(leaf, judged), batch).value

    def by_trl(leaf: Tensor, judged: Tensor) -> Tensor:
        ratio = padded((leaf.log_softmax(-1)[range(10), flat] - old_logprobs).exp())
        surrogate = torch.stack([-padded(advantage) * ratio, -padded(advantage) * ratio.clamp(0.8, 1.2)]).amax(0)
        kept = torch.minimum(torch.maximum(judged, old_values - 0.2), old_values + 0.2)
        errors = torch.stack([padded((v - returns) ** 2) for v in (judged, kept)]).amax(0)
        return surrogate[MASK].mean() + coefficient * 0.5 * errors[MASK].mean()

    torch.testing.assert_close(by_us(logits, values), by_trl(logits, values), rtol=1e-5, atol=1e-6)
    for place in (0, 1):

        def at(leaf: Tensor, loss: Any, place: int = place) -> Tensor:
            found: Tensor = loss(*((leaf, values) if place == 0 else (logits, leaf)))
            return found

        leaf = (logits, values)[place]
        ours, theirs = (gradient(lambda x, loss=loss: at(x, loss), leaf) for loss in (by_us, by_trl))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
