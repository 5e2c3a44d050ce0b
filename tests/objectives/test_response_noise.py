"""Masked Thought's ablations (sheet 34): dropout or noise on the embeddings of some response tokens."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import build, tokenizer
from steps import random_step
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.batch import Batch, Layout, collate
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.objectives.embedding_noise import EmbeddingNoise
from posttrain.objectives.response_noise import ResponseNoise
from posttrain.policy import Policy

STEP = random_step(0, [9, 5, 14])
WIDTH = 32


def batch_of(step: list[Sequence], layout: Layout = "padded", at: Step | None = None) -> Batch:
    return replace(collate(step, pad_id=258, layout=layout), step=at or Step(seed=7))


def disturbed(
    noise: ResponseNoise, step: list[Sequence], layout: Layout = "padded", at: Step | None = None
) -> list[Tensor]:
    """What becomes of embeddings of ones, `[T, d]` of each sequence."""
    batch = batch_of(step, layout, at)
    found = noise.disturbed(batch, torch.ones(*batch.rows.input_ids.shape, WIDTH))
    if layout == "padded":
        return [row[: len(sequence)] for row, sequence in zip(found, step, strict=True)]
    return list(found[0].split([len(sequence) for sequence in step]))


def test_at_full_rate_and_dropout_exactly_the_targets_are_zero() -> None:
    for sequence, found in zip(STEP, disturbed(ResponseNoise(1.0, 0, dropout=1.0), STEP), strict=True):
        assert torch.equal(found == 0, torch.from_numpy(sequence.target)[:, None].expand(-1, WIDTH))


def test_a_share_of_the_targets_is_chosen_and_a_share_of_their_numbers_dropped() -> None:
    step = random_step(1, [400] * 20, trained=1.0)
    found = torch.cat(disturbed(ResponseNoise(0.4, 0, dropout=0.75), step))
    changed = (found != 1).any(-1)
    assert changed.float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert (found[changed] == 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert found[changed].unique().tolist() == [0.0, 4.0]


def test_noise_is_that_of_the_whole_sequence_at_the_chosen_tokens() -> None:
    batch = batch_of(STEP)
    noise = EmbeddingNoise(100.0).noise(batch, torch.ones(*batch.rows.input_ids.shape, WIDTH))
    for found, whole in zip(disturbed(ResponseNoise(0.5, 0, alpha=100.0), STEP), noise, strict=True):
        changed = (found != 1).any(-1)
        assert torch.equal(found[changed], (1 + whole[: len(found)])[changed])


def test_the_rate_is_ramped() -> None:
    step = random_step(2, [4000], trained=1.0)
    noise = ResponseNoise(0.8, 0.5, dropout=1.0)
    for index, expected in ((0, 0.0), (3, 0.4), (9, 0.8)):
        (found,) = disturbed(noise, step, at=Step(index, 10, seed=7))
        assert (found == 0).float().mean().item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_draws_do_not_depend_on_the_neighbours_or_the_layout(layout: Layout) -> None:
    noise = ResponseNoise(0.5, 0, dropout=0.5, alpha=5.0)
    alone = [disturbed(noise, [sequence])[0] for sequence in STEP]
    for order in ([0, 1, 2], [2, 0], [1, 2]):
        for i, found in zip(order, disturbed(noise, [STEP[i] for i in order], layout), strict=True):
            assert torch.equal(found, alone[i])


def test_every_step_draws_anew() -> None:
    first, second = (disturbed(ResponseNoise(0.5, 0, dropout=1.0), STEP, at=Step(seed=seed))[2] for seed in (1, 2))
    assert not torch.equal(first, second)


def test_nothing_changes_at_rate_zero() -> None:
    policy = Policy(build("llama"), tokenizer())
    found = ResponseNoise(0.0, 0, dropout=1.0)(policy, batch_of(STEP), ())
    torch.testing.assert_close(found.logprobs, policy.scores(batch_of(STEP)).logprobs)


def test_a_recipe_names_it_on_any_term() -> None:
    (term,) = build_objective({"name": "dft", "embedding_noise": {"rate": 0.2, "dropout": 1}}).terms
    assert term.forward == ResponseNoise(0.2, 2 / 3, dropout=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 2}, "embedding_noise.rate' has to be 1 or less, found 2"),
        ({"rat": 0.2}, "embedding_noise.rat'"),
        ({"alpha": float("inf")}, "embedding_noise.alpha'"),
    ],
)
def test_what_it_cannot_read_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_objective({"name": "nll", "embedding_noise": options})
