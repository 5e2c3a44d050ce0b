"""Filters, draws and random streams."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from posttrain.errors import UserError
from posttrain.generation import Sampling
from posttrain.generation.sampling import check, distribution, draw, stream

VOCABULARY = 400


def logits(rows: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def spread_out(sampling: Sampling, raw: torch.Tensor) -> torch.Tensor:
    """The sampling distribution as probabilities `[R, V]`."""
    logprobs, ids = distribution(raw.log_softmax(-1), sampling)
    if ids is None:
        return logprobs.exp()
    return torch.zeros_like(raw).scatter(-1, ids, logprobs.exp())


@settings(max_examples=40, deadline=None)
@given(
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 7, 200, 1000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    spread=st.sampled_from([0.2, 3.0]),
    seed=st.integers(0, 1000),
)
def test_filters_equal_those_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, spread: float, seed: int
) -> None:
    raw = logits(3, seed, spread).double()  # so that rounding does not decide which token is the last of a nucleus
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(None, raw.clone()).softmax(-1)
    found = spread_out(Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p), raw)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=20), Sampling(temperature=0.5, top_p=0.8)])
def test_draws_follow_the_sampling_distribution(sampling: Sampling) -> None:
    count = 40_000
    raw = logits(1, spread=2.0)
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(1))
    tokens, _, _ = draw(raw.expand(count, -1), uniforms, sampling)
    frequency = torch.bincount(tokens, minlength=VOCABULARY) / count
    probability = spread_out(sampling, raw)[0]
    assert (frequency - probability).abs().max() < 5 * (0.25 / count) ** 0.5
    assert not frequency[probability == 0].any()


def test_logprobs_are_of_the_policy_and_sampling_logprobs_of_what_was_drawn_from() -> None:
    raw = logits(50)
    sampling = Sampling(temperature=0.7, top_k=30, top_p=0.9)
    tokens, logprobs, sampling_logprobs = draw(raw, torch.rand(50), sampling)
    rows = torch.arange(50)
    torch.testing.assert_close(logprobs, raw.log_softmax(-1)[rows, tokens])
    torch.testing.assert_close(sampling_logprobs.exp(), spread_out(sampling, raw)[rows, tokens])


def test_without_temperature_and_filters_both_logprobs_are_equal() -> None:
    _, logprobs, sampling_logprobs = draw(logits(50), torch.rand(50), Sampling())
    assert torch.equal(logprobs, sampling_logprobs)


def test_greedy_takes_the_likeliest_token_with_certainty() -> None:
    raw = logits(5)
    tokens, logprobs, sampling_logprobs = draw(raw, None, Sampling(temperature=0))
    assert torch.equal(tokens, raw.argmax(-1))
    torch.testing.assert_close(logprobs, raw.log_softmax(-1).max(-1).values)
    assert not sampling_logprobs.any()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-24, 1.0])
def test_the_edges_of_the_uniform_never_draw_an_impossible_token(uniform: float) -> None:
    raw = torch.full((2, VOCABULARY), -torch.inf)
    raw[0, 3], raw[1, 200] = 0.0, 5.0
    tokens, logprobs, _ = draw(raw, torch.full((2,), uniform), Sampling())
    assert tokens.tolist() == [3, 200]
    assert logprobs.tolist() == [0.0, 0.0]


def test_a_nucleus_wider_than_the_guess_is_found_by_sorting_everything() -> None:
    flat = torch.zeros(1, VOCABULARY)
    kept = spread_out(Sampling(top_p=0.9), flat + 1e-3 * logits(1)) > 0
    assert 0.88 * VOCABULARY <= int(kept.sum()) <= 0.92 * VOCABULARY


def test_every_sample_has_a_stream_of_its_own_that_only_its_name_decides() -> None:
    names = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (-1, 0, 0)]
    draws = {name: stream(*name).random(4).tolist() for name in names}
    assert len({tuple(values) for values in draws.values()}) == len(names)
    assert draws[0, 1, 0] == stream(0, 1, 0).random(4).tolist()
    many = np.array([stream(7, prompt, sample).random() for prompt in range(60) for sample in range(60)])
    assert abs(many.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("field", "value"), [("max_new_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("min_p", 2.0), ("stop", ("",))]
)
def test_values_that_cannot_be_drawn_with_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        check(Sampling(**{field: value}))
