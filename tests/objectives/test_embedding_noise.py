from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import build, tokenizer
from steps import random_step
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.batch import Batch, Layout, collate
from posttrain.data.scores import TokenScores
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.objectives.embedding_noise import EmbeddingNoise
from posttrain.policy import Policy

STEP = random_step(0, [9, 5, 14])
WIDTH = 32


def batch_of(step: list[Sequence], layout: Layout = "padded") -> Batch:
    return replace(collate(step, pad_id=258, layout=layout), step=Step(seed=7))


def noise_of(step: list[Sequence], layout: Layout = "padded", alpha: float = 5.0, width: int = WIDTH) -> list[Tensor]:
    """The noise `[T, d]` of each sequence."""
    batch = batch_of(step, layout)
    noise = EmbeddingNoise(alpha).noise(batch, torch.zeros(*batch.rows.input_ids.shape, width))
    if layout == "padded":
        return [row[: len(sequence)] for row, sequence in zip(noise, step, strict=True)]
    return list(noise[0].split([len(sequence) for sequence in step]))


def scored(noise: EmbeddingNoise, step: list[Sequence], layout: Layout = "padded") -> Tensor:
    policy = Policy(build("llama"), tokenizer(), layout=layout)
    return noise(policy, batch_of(step, layout), ()).logprobs.detach()


def test_noise_is_uniform_within_alpha_over_the_root_of_length_times_width() -> None:
    step = random_step(1, [400, 100], trained=1.0)
    for sequence, found in zip(step, noise_of(step), strict=True):
        bound = 5 / (len(sequence) * WIDTH) ** 0.5
        assert 0.99 * bound < found.abs().max() <= bound
        assert found.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert abs(found.mean().item()) < 0.05 * bound
        assert len(found.unique()) > 0.99 * found.numel()


def test_its_length_is_the_sequences_own_up_to_the_last_target() -> None:
    (sequence,) = random_step(2, [50], trained=1.0)
    shorter = replace(sequence, target=sequence.target & (torch.arange(50) < 20).numpy())
    torch.testing.assert_close(noise_of([shorter])[0], noise_of([sequence])[0] * (50 / 20) ** 0.5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_noise_does_not_depend_on_the_neighbours_or_the_layout(layout: Layout) -> None:
    alone = [noise_of([sequence])[0] for sequence in STEP]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2]):
        together = noise_of([STEP[i] for i in order], layout)
        for i, found in zip(order, together, strict=True):
            assert torch.equal(found, alone[i])


def test_noise_is_new_at_every_step_and_for_every_sequence_and_position() -> None:
    batch = batch_of(STEP)
    like = torch.zeros(*batch.rows.input_ids.shape, WIDTH)
    first, second = (EmbeddingNoise(5.0).noise(replace(batch, step=Step(seed=seed)), like) for seed in (1, 2))
    assert not torch.isclose(first, second).any(-1).all()
    rows = torch.cat([noise[: len(s)] for noise, s in zip(first, STEP, strict=True)])
    similar = torch.corrcoef(rows).fill_diagonal_(0).abs().max()
    assert similar < 0.8  # of 378 pairs of 32 independent numbers


def test_a_sequence_without_targets_has_no_noise() -> None:
    step = [*random_step(3, [6], trained=0.0), *random_step(4, [8], trained=1.0)]
    silent, loud = noise_of(step)
    assert not silent.any()
    assert loud.all()


def test_a_large_width_is_drawn_in_parts_that_fit_together() -> None:
    wide, narrow = (noise_of(random_step(5, [40]), width=width)[0] for width in (60_000, WIDTH))
    torch.testing.assert_close(wide[:, :WIDTH] * 60_000**0.5, narrow * WIDTH**0.5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_scores_are_those_of_the_model_with_noisy_embeddings(layout: Layout) -> None:
    clean = scored(EmbeddingNoise(0.0), STEP, layout)
    model = build("llama")
    torch.testing.assert_close(clean, Policy(model, tokenizer()).scores(batch_of(STEP)).logprobs.detach())
    noisy = scored(EmbeddingNoise(5.0), STEP, layout)
    assert (noisy - clean).abs().max() > 0.01
    expected = []
    for sequence, noise in zip(STEP, noise_of(STEP), strict=True):
        embedded = model.get_input_embeddings()(torch.from_numpy(sequence.tokens).long()) + noise
        logprobs = model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
        expected += [logprobs[t - 1, sequence.tokens[t]] for t in sequence.target.nonzero()[0]]
    torch.testing.assert_close(noisy, torch.stack(expected), rtol=1e-4, atol=2e-5)


def test_embeddings_are_trained_through_the_noise() -> None:
    policy = Policy(build("llama"), tokenizer())
    EmbeddingNoise(5.0)(policy, batch_of(STEP), ()).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    gradient = policy.model.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient.any()


def test_any_term_of_an_objective_may_read_under_noise() -> None:
    terms = build_objective([{"name": "dft", "embedding_noise": 5}, "nll", {"name": "nll", "embedding_noise": 0}]).terms
    assert [term.forward for term in terms] == [EmbeddingNoise(5.0), None, None]


def test_terms_with_the_same_noise_share_a_forward_pass() -> None:
    class Counting:
        passes = 0

        def embed(self, ids: Tensor) -> Tensor:
            return torch.zeros(*ids.shape, 4)

        def scores(self, batch: Batch, needs: Any = (), embeddings: Tensor | None = None) -> TokenScores:
            self.passes += 1
            assert embeddings is not None
            return TokenScores(torch.zeros(len(batch.tokens)))

    policy = Counting()
    objective = build_objective([{"name": "dft", "embedding_noise": 5}, {"name": "nll", "embedding_noise": 5.0}])
    objective.loss(policy, objective.attach(collate(STEP), STEP, objective.coefficients(STEP)))
    assert policy.passes == 1


@pytest.mark.parametrize("value", [-1, "much", True, float("inf"), float("nan")])
def test_a_noise_that_is_no_number_from_zero_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"objective 'nll': 'embedding_noise' must be a number, 0 or more, found"):
        build_objective({"name": "nll", "embedding_noise": value})
