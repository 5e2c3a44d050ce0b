"""Clip-Cov and KL-Cov on a step whose covariances are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gradients import results, step_of
from steps import on_ranks

from posttrain.data.batch import collate
from posttrain.data.step import Step
from posttrain.objectives.covariance import with_covariance

TOKENS = [[0, 1], [2]]
COLUMNS = {"advantage": [[1.0, 1.0], [-2.0]], "old_logprobs": [[-1.0, -3.0], [-2.0]]}
# mean A = 0, mean log π_old = -2: covariances 1, -1, 0


def covariances(columns=COLUMNS):
    return with_covariance(step_of(TOKENS, columns=columns), Step())


def test_the_covariance_is_of_the_whole_step():
    first, second = covariances()
    assert first.columns["covariance"][1:] == pytest.approx([1, -1])
    assert second.columns["covariance"][1:] == pytest.approx([0])
    assert [*first.columns["covariance_rank"][1:], *second.columns["covariance_rank"][1:]] == pytest.approx(
        [0, 2 / 3, 1 / 3]
    )


def test_it_does_not_depend_on_the_ranks():
    step = step_of(TOKENS, columns=COLUMNS)
    shares = on_ranks([step[:1], step[1:]], lambda share, gather: with_covariance(share, Step(gather=gather)))
    for (ours,), theirs in zip(shares, covariances(), strict=True):
        for name in ("covariance", "covariance_rank"):
            np.testing.assert_array_equal(ours.columns[name], theirs.columns[name])


def found(spec):
    step = Step(seed=3)
    sequences = with_covariance(step_of(TOKENS, columns=COLUMNS), step)
    batch = replace(collate(sequences), step=step)
    logits = torch.log_softmax(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), -1)
    return results(spec, batch, logits)


def test_kl_cov_adds_a_kl_to_the_tokens_of_the_largest_covariance():
    losses, metrics = found({"name": "kl_cov", "share": 0.3, "weight_of_kl": 2.0})
    assert metrics["held_back"].tolist() == [1, 0, 0]
    plain, _ = found({"name": "kl_cov", "share": 1e-9, "weight_of_kl": 2.0})
    held = 2 * abs(float(metrics["ratio"][0].log()))
    # the first token is always among the largest share, however small
    assert losses.tolist() == pytest.approx(plain.tolist())
    assert losses[0].item() == pytest.approx(-metrics["ratio"][0].item() + held, rel=1e-5)


def test_of_tokens_with_equal_covariances_kl_cov_holds_back_no_more_than_its_share():
    size = 400
    columns = {"advantage": [[0.5] * size], "old_logprobs": [np.linspace(-3, 0, size).tolist()]}
    step = Step(seed=3)
    tokens = [[0] * size]
    batch = replace(collate(with_covariance(step_of(tokens, columns=columns), step)), step=step)
    _, metrics = results({"name": "kl_cov", "share": 0.1}, batch, torch.zeros(size, 3).log_softmax(-1))
    assert 20 <= metrics["held_back"].sum() <= 60  # 40 on average, 6 the standard deviation


def test_clip_cov_takes_the_loss_from_tokens_between_the_bounds():
    everyone, metrics = found({"name": "clip_cov", "share": 1.0, "low": 0.5, "high": 5.0})
    nobody, _ = found({"name": "clip_cov", "share": 1.0, "low": 4.0, "high": 5.0})
    ppo, _ = found("ppo")
    assert metrics["held_back"].tolist() == [1, 0, 0]
    assert everyone[0] == 0
    assert everyone[1:].tolist() == ppo[1:].tolist()
    assert nobody.tolist() == ppo.tolist()
