import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gradients import batch_of, gradient, losses, mean_loss, results, step_of
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import collate
from posttrain.data.scores import TokenScores
from posttrain.objectives import build_objective, objectives

LENGTHS = (2, 3, 1)
TOKENS = [[0, 1], [2, 0, 1], [2]]


def logits_of(*probabilities: float) -> Tensor:
    """Two tokens of vocabulary: token 0 has these probabilities."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()], -1)


def one(p: list[float], old: list[float], advantage: list[float]) -> tuple[Any, Tensor]:
    """A sequence whose tokens have these probabilities."""
    columns = {"old_logprobs": [torch.tensor(old).log().tolist()], "advantage": [advantage]}
    return batch_of([[0] * len(p)], columns=columns), logits_of(*p)


def drawn(seed: int) -> tuple[Any, Tensor, Tensor]:
    """Batch, logits and reference of three sequences, some way from where they were drawn."""
    generator = torch.Generator().manual_seed(seed)
    logits, reference, old = (torch.randn(6, 3, generator=generator) for _ in range(3))
    old = logits + 0.5 * old
    flat = torch.tensor([token for tokens in TOKENS for token in tokens])
    old_logprobs = old.log_softmax(-1).gather(-1, flat[:, None]).squeeze(-1)
    sampled = (old_logprobs + 0.1 * torch.randn(6, generator=generator)).split(LENGTHS)
    advantage = torch.randn(3, generator=generator)
    columns = {
        "old_logprobs": [part.tolist() for part in old_logprobs.split(LENGTHS)],
        "sampled_logprob": [part.tolist() for part in sampled],
        "advantage": [[float(value)] * size for value, size in zip(advantage, LENGTHS, strict=True)],
    }
    return [_as_rollout(sequence) for sequence in step_of(TOKENS, columns=columns)], logits, reference


def _as_rollout(sequence: Sequence) -> Sequence:
    return replace(sequence, origin=np.where(sequence.target, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8))


def test_golden_numbers_of_the_clipped_surrogate() -> None:
    batch, logits = one([0.6, 0.6], [0.3, 0.5], [1, 1])
    assert losses("ppo", batch, logits).tolist() == pytest.approx([-1.2, -1.2])
    assert gradient(lambda leaf: losses("ppo", batch, leaf)[:1], logits).abs().max() == 0  # clipped: no gradient
    batch, logits = one([0.6, 0.6], [0.3, 0.5], [-1, -1])
    assert losses("grpo", batch, logits).tolist() == pytest.approx([2, 1.2])
    batch, logits = one([0.5], [0.1], [-1])
    assert losses({"name": "ppo", "dual_clip": 3}, batch, logits).tolist() == pytest.approx([3])
    found, metrics = results({"name": "ppo", "clip_high": 0.28}, *one([0.6, 0.3], [0.3, 0.5], [1, -1]))
    assert found.tolist() == pytest.approx([-1.28, 0.8])
    assert metrics["clipped_high"].tolist() == [1, 0]
    assert metrics["clipped_low"].tolist() == [0, 1]


def test_the_sampler_is_corrected_for_what_it_drew_and_not_for_what_it_was_given() -> None:
    columns = {"sampled_logprob": [[0.0, math.log(0.5)]], "advantage": [[1.0, 1.0]]}
    (sequence,) = step_of([[0, 0]], columns=columns)
    begun = replace(sequence, origin=np.array([Origin.PROMPT, Origin.DEMONSTRATION, Origin.ROLLOUT], np.uint8))
    found, metrics = results({"name": "grpo", "importance_cap": 2}, collate([begun]), logits_of(0.25, 0.25))
    assert found.tolist() == pytest.approx([-1.0, -0.5])
    assert metrics["importance"].tolist() == pytest.approx([math.nan, 0.5], nan_ok=True)


def test_the_sheets_mean_of_sequence_means() -> None:
    columns = {
        "old_logprobs": [torch.tensor([0.4, 0.5]).log().tolist(), torch.tensor([0.4]).log().tolist()],
        "advantage": [[1, -1], [-2]],
    }
    step = step_of([[0, 0], [0]], columns=columns)
    assert mean_loss("ppo", step, logits_of(0.6, 0.5, 0.3)).item() == pytest.approx(0.75)


def test_golden_number_of_the_ratio_of_a_sequence() -> None:
    batch, logits = one([0.6, 0.6], [0.3, 0.5], [1, 1])
    _, metrics = results("gspo", batch, logits)
    assert metrics["ratio"].tolist() == pytest.approx([1.549193], abs=1e-6)
    assert losses("gspo", batch, logits).tolist() == pytest.approx([-1.0004])


def test_golden_numbers_of_the_estimators_of_the_distance() -> None:
    batch = batch_of([[0]])
    reference = logits_of(0.6)
    for estimator, expected in (("k1", -0.693147), ("k2", 0.240227), ("k3", 0.306853)):
        spec = {"name": "kl", "estimator": estimator}
        assert losses(spec, batch, logits_of(0.3), reference).item() == pytest.approx(expected, abs=1e-6)
        assert losses(spec, batch, logits_of(0.3), logits_of(0.3)).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo", "cispo"])
def test_the_first_update_is_reinforce(name: str) -> None:
    """Sheet 52, identity 9: where the ratio is 1 all gradients are those of -A log π."""
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    columns = {"advantage": [[1.5] * 2, [-0.5] * 3, [0.25]]}
    step = step_of(TOKENS, columns=columns)

    def found(spec: Any) -> Tensor:
        return gradient(lambda leaf: mean_loss(spec, step, leaf), logits)

    expected = found({"name": "reinforce", "reduction": "sequences"})
    spec = {"name": name} if name == "gspo" else {"name": name, "reduction": "sequences"}
    torch.testing.assert_close(found(spec), expected)


def test_rejection_sampling_is_likelihood_of_the_right_answers() -> None:
    """Sheet 52: RAFT = REINFORCE on rewards 1 and 0, up to the number that it is divided by."""
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    right = step_of(TOKENS, columns={"advantage": [[1] * 2, [0] * 3, [1]]}, scalars={"right": [1, 0, 1]})
    policy = gradient(lambda leaf: mean_loss("reinforce", right, leaf), logits)
    likelihood = gradient(lambda leaf: mean_loss({"name": "nll", "where": "right"}, right, leaf), logits)
    torch.testing.assert_close(policy * 6 / 3, likelihood)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"name": "grpo"}, {"loss_type": "grpo"}),
        ({"name": "grpo", "clip_high": 0.28, "reduction": "tokens"}, {"loss_type": "bnpo", "epsilon_high": 0.28}),
        ({"name": "grpo", "reduction": {"constant": 7}}, {"loss_type": "dr_grpo"}),
        (
            {"name": "gspo", "clip_low": 0.2, "clip_high": 0.3},
            {"importance_sampling_level": "sequence", "epsilon_high": 0.3},
        ),
        ({"name": "cispo", "ratio_cap": 1.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
        ({"name": "grpo", "importance_cap": 1.05}, {"cap": 1.05}),
        ([{"name": "grpo"}, {"name": "kl", "weight": 0.04, "reduction": "sequences"}], {"beta": 0.04}),
    ],
    ids=["GRPO", "DAPO", "Dr.GRPO", "GSPO", "CISPO", "importance", "KL"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_and_gradients_are_those_of_trl(ours: Any, theirs: dict[str, Any], seed: int) -> None:
    pytest.importorskip("trl", reason="TRL is an extra")
    step, logits, reference = drawn(seed)

    def by_trl(leaf: Tensor) -> Tensor:
        return trl_loss(step, leaf, reference, **theirs)

    def by_us(leaf: Tensor) -> Tensor:
        return mean_loss(ours, step, leaf, reference)

    torch.testing.assert_close(by_us(logits), by_trl(logits), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(by_us, logits), gradient(by_trl, logits), rtol=1e-5, atol=1e-6)


def trl_loss(step: Any, logits: Tensor, reference: Tensor, cap: float | None = None, **options: Any) -> Tensor:
    """The loss of TRL's `GRPOTrainer` on rows that are padded on the right."""
    from trl import GRPOTrainer

    width = max(LENGTHS)
    mask = torch.tensor([[t < size for t in range(width)] for size in LENGTHS]).float()

    def rows(values: Tensor) -> Tensor:
        return torch.zeros(mask.shape).masked_scatter(mask.bool(), values)

    def column(name: str) -> Tensor:
        return rows(torch.cat([torch.from_numpy(sequence.columns[name][1:]) for sequence in step]))

    flat = torch.tensor([token for tokens in TOKENS for token in tokens])[:, None]
    logprobs = logits.log_softmax(-1).gather(-1, flat).squeeze(-1)
    base = reference.log_softmax(-1).gather(-1, flat).squeeze(-1)
    settings = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "max_completion_length": 7,
        "use_vllm": cap is not None,
        "vllm_importance_sampling_correction": cap is not None,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        **options,
    }
    trainer = SimpleNamespace(
        **settings,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (rows(logprobs), torch.zeros(mask.shape), None),
    )
    advantages = torch.stack([torch.tensor(float(sequence.columns["advantage"][1])) for sequence in step])
    old = column("old_logprobs")
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": rows(base),
        "num_items_in_batch": mask.sum(),
    }
    if cap is not None:
        inputs["importance_sampling_ratio"] = (old - column("sampled_logprob")).exp().clamp(max=cap)
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def test_a_rollout_without_its_advantage_is_refused() -> None:
    with pytest.raises(Exception, match="no column 'advantage'"):
        build_objective("grpo").coefficients(step_of([[0, 1]]))


def valued(values: list[float], **columns: Any) -> tuple[Any, dict[str, Any]]:
    """The term `value` on a batch of two sequences, of 2 tokens and 1, with these values."""
    batch = batch_of([[0, 1], [2]], columns=columns)
    scores = TokenScores(torch.zeros(3), {"values": torch.tensor(values)})
    return objectives["value"](scores, batch)


def test_golden_numbers_of_the_value_loss() -> None:
    columns = {"old_values": [[0.5, 0.2], [0.5]], "return": [[1.0, 0.0], [1.0]]}
    losses_, metrics = valued([0.9, 0.1, 0.5], **columns)
    assert (2 * losses_).tolist() == pytest.approx([0.09, 0.01, 0.25])
    assert metrics["value_clipped"].tolist() == [1, 0, 0]
    assert float((losses_[:2].mean() + losses_[2]) / 2) == pytest.approx(0.075)
    batch = batch_of([[0, 1], [2]], columns=columns)
    plain, _ = objectives["value"](
        TokenScores(torch.zeros(3), {"values": torch.tensor([0.9, 0.1, 0.5])}), batch, clip=None
    )
    assert (2 * plain).tolist() == pytest.approx([0.01, 0.01, 0.25])


def test_a_bonus_for_entropy_is_its_negative() -> None:
    batch, logits = one([0.5, 0.9], [0.5, 0.9], [1, 1])
    entropy = [math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.1)]
    assert losses("entropy_bonus", batch, logits).tolist() == pytest.approx([-value for value in entropy])


@pytest.mark.parametrize(
    ("masked", "value", "slopes"),
    [
        (None, -0.17320478, [-0.0866024, 0.0866024, 0.0866024, -0.0866024]),
        (1, -0.6185885, [-0.1237177, 0, 0.1237177, -0.1237177]),
    ],
)
def test_golden_mean_over_tokens_with_and_without_a_truncated_answer(
    masked: int | None, value: float, slopes: list[float]
) -> None:
    """Sheet 35 (AceReason-Nemotron): a masked answer leaves the denominator too."""
    lengths, gains = [2, 3, 1, 4], [0.866024, -0.866024, -0.866024, 0.866024]
    columns = {"advantage": [[gain] * length for gain, length in zip(gains, lengths, strict=True)]}
    step = step_of([[0] * length for length in lengths], columns=columns)
    step = [replace(s, target=s.target & (row != masked)) for row, s in enumerate(step)]
    kept = [length for row, length in enumerate(lengths) if row != masked]
    leaf = torch.zeros(sum(kept), 2, dtype=torch.float64, requires_grad=True)
    loss = mean_loss({"name": "grpo", "reduction": "tokens"}, step, leaf)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    (gradient_of_logits,) = torch.autograd.grad(loss, leaf)
    by_token = (gradient_of_logits[:, 0] / 0.5).split(kept)  # d log softmax / d z = 1 - p = 0.5
    found = iter([float(part[0]) for part in by_token])
    assert [0 if row == masked else next(found) for row in range(4)] == pytest.approx(slopes, abs=1e-6)
    assert mean_loss("grpo", step_of([[0]] * 4, columns={"advantage": [[g] for g in gains]}), torch.zeros(4, 2)) == 0
