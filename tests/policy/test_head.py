from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from steps import random_step
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posttrain.data.batch import Batch, collate
from posttrain.data.scores import (
    ENTROPY,
    ENTROPY_METRIC,
    FORWARD_KL,
    LOG_PARTITION,
    MEAN_LOGPROB,
    REFERENCE_LOGPROBS,
    REVERSE_KL,
    Chunk,
    Need,
    TokenScores,
)
from posttrain.data.step import Step
from posttrain.policy.head import Head, token_scores

WIDTH, VOCABULARY = 8, 301
BATCH = collate(random_step(0, [30, 12, 1, 25]))
TOKENS = len(BATCH.tokens)
REFERENCE = torch.randn(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(9)) * 2
DIFFERENTIABLE = [ENTROPY, MEAN_LOGPROB, LOG_PARTITION, FORWARD_KL, REVERSE_KL]
CORRECT = Need("correct", lambda chunk: (chunk.logits.argmax(-1) == chunk.tokens).float(), differentiable=False)
FIXED = [ENTROPY_METRIC, CORRECT, REFERENCE_LOGPROBS]


class Projection(nn.Linear):
    """A linear layer that the head must not take for a bare one: its scores come by the generic path."""


def make_head(kind: str, vocabulary: int = VOCABULARY) -> Head:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = Projection if kind == "generic" else nn.Linear
        projection = layer(WIDTH, vocabulary, bias=kind in ("bias", "generic"))
        with torch.no_grad():
            projection.weight.mul_(4)
    return Head(projection, scale=0.25 if kind == "scale" else 1.0, softcap=3.0 if kind == "softcap" else None)


def make_hidden(count: int = TOKENS) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(2))


def plain_logprobs(hidden: Tensor, head: Head, tokens: Tensor) -> Tensor:
    logits = F.linear(hidden, head.projection.weight, head.projection.bias) * head.scale  # type: ignore[arg-type]
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)


def gradients(loss: Tensor, hidden: Tensor, head: Head) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [hidden, *head.projection.parameters()]))


def scored(
    hidden: Tensor, head: Head, needs: tuple[Need, ...] = (), rows: int = 16, batch: Batch = BATCH
) -> TokenScores:
    return token_scores(hidden, head, batch, needs, lambda at: REFERENCE[at], rows * VOCABULARY)


def weights(count: int = TOKENS) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("rows", [16, 17, TOKENS - 1, TOKENS, 1000])
@pytest.mark.parametrize("kind", ["plain", "bias", "generic", "scale", "softcap"])
def test_chunked_scores_are_those_of_the_whole_in_values_and_gradients(kind: str, rows: int) -> None:
    head, hidden = make_head(kind), make_hidden().requires_grad_()
    assert head.is_plain == (kind in ("plain", "bias"))
    found = scored(hidden, head, rows=rows).logprobs
    expected = plain_logprobs(hidden, head, BATCH.tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    pairs = zip(*(gradients((weights() * x).sum(), hidden, head) for x in (found, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "bias", "generic", "scale", "softcap"])
def test_gradients_are_those_of_float64(kind: str) -> None:
    head, hidden = make_head(kind), make_hidden().requires_grad_()
    ours = gradients((weights() * scored(hidden, head).logprobs).sum(), hidden, head)
    head.projection.double()
    exact = hidden.detach().double().requires_grad_()
    theirs = gradients((weights().double() * plain_logprobs(exact, head, BATCH.tokens)).sum(), exact, head)
    for found, expected in zip(ours, theirs, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_tied_embeddings_get_both_of_their_gradients() -> None:
    embedding = nn.Embedding(VOCABULARY, WIDTH)
    head = make_head("plain")
    head.projection.weight = embedding.weight
    hidden = torch.tanh(embedding(BATCH.tokens.flip(0)))
    found = torch.autograd.grad((weights() * scored(hidden, head).logprobs).sum(), embedding.weight, retain_graph=True)
    plain = plain_logprobs(hidden, head, BATCH.tokens)
    expected = torch.autograd.grad((weights() * plain).sum(), embedding.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bias", "generic"])
def test_a_frozen_head_and_a_frozen_body_have_no_gradient(kind: str) -> None:
    head, hidden = make_head(kind), make_hidden().requires_grad_()
    head.projection.requires_grad_(False)
    scored(hidden, head).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert head.projection.weight.grad is None
    head.projection.requires_grad_(True)
    scored(make_hidden(), head).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert head.projection.weight.grad is not None


@pytest.mark.parametrize("kind", ["bias", "generic"])
@pytest.mark.parametrize("mixed", [False, True], ids=["bfloat16", "autocast"])
def test_bfloat16_is_close_to_float32(kind: str, mixed: bool) -> None:
    head, hidden = make_head(kind), make_hidden().requires_grad_()
    expected = scored(hidden, head).logprobs
    exact = gradients((weights() * expected).sum(), hidden, head)
    if not mixed:
        head.projection.bfloat16()
        hidden = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = scored(hidden, head).logprobs
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
    for ours, theirs in zip(gradients((weights() * found).sum(), hidden, head), exact, strict=True):
        assert ours.dtype == hidden.dtype
        assert float((ours.float() - theirs).norm() / theirs.norm()) < 0.02


def test_under_autocast_the_backward_pass_sees_the_logits_of_the_forward_pass() -> None:
    """The gradient of a log-softmax sums to zero over the vocabulary, if both passes have the same logits."""
    head, hidden = make_head("bias"), 30 * make_hidden()
    with torch.autocast("cpu", torch.bfloat16):
        logprobs = scored(hidden, head).logprobs
    logprobs.sum().backward()  # type: ignore[no-untyped-call]
    gradient = head.projection.bias.grad
    assert isinstance(gradient, Tensor)
    assert abs(float(gradient.sum())) < 1e-3


@pytest.mark.parametrize("kind", ["plain", "generic"])
@pytest.mark.parametrize("needs", [(), (ENTROPY_METRIC, CORRECT), (ENTROPY, FORWARD_KL, REFERENCE_LOGPROBS)])
def test_no_tokens_give_empty_scores_and_zero_gradients(kind: str, needs: tuple[Need, ...]) -> None:
    empty = collate(random_step(0, [5, 3], trained=0.0))
    top = Need("top", lambda chunk: chunk.logits.topk(3).values)
    head, hidden = make_head(kind), make_hidden(0).requires_grad_()
    for asked in (needs, (*needs, top)):
        scores = scored(hidden, head, asked, batch=empty)
        assert scores.logprobs.shape == (0,)
        assert all(scores[need.name].shape == ((0, 3) if need is top else (0,)) for need in asked)
        scores.logprobs.sum().backward()  # type: ignore[no-untyped-call]
        assert head.projection.weight.grad is not None
        assert not head.projection.weight.grad.any()
    with torch.no_grad():
        assert scored(hidden, head, needs, batch=empty).logprobs.shape == (0,)


@pytest.mark.parametrize("kind", ["bias", "generic", "softcap"])
@pytest.mark.parametrize("graph", [True, False], ids=["training", "inference"])
def test_needs_are_what_torch_says_they_are(kind: str, graph: bool) -> None:
    head, hidden = make_head(kind), make_hidden()
    with torch.set_grad_enabled(graph):
        scores = scored(hidden, head, (*DIFFERENTIABLE, *FIXED))
    logits = head.logits(hidden).detach()
    ours, reference = logits.log_softmax(-1), REFERENCE.log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    expected = {
        "entropy": entropy,
        "entropy_metric": entropy,
        "mean_logprob": ours.mean(-1),
        "log_partition": logits.exp().sum(-1).log(),
        "correct": (logits.argmax(-1) == BATCH.tokens).float(),
        "reference_logprobs": reference[torch.arange(TOKENS), BATCH.tokens],
        "forward_kl": F.kl_div(ours, reference, reduction="none", log_target=True).sum(-1),
        "reverse_kl": F.kl_div(reference, ours, reduction="none", log_target=True).sum(-1),
    }
    assert scores.extra.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(scores[name].detach(), values, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("need", DIFFERENTIABLE, ids=lambda need: need.name)
def test_gradients_of_needs_are_those_of_finite_differences(need: Need) -> None:
    generator = torch.Generator().manual_seed(4)
    logits, reference = (torch.randn(5, 11, generator=generator, dtype=torch.float64) * 3 for _ in range(2))

    def function(z: Tensor) -> Tensor:
        return need.function(Chunk(z, torch.arange(5), torch.arange(5), reference))

    assert torch.autograd.gradcheck(function, logits.requires_grad_())


@pytest.mark.parametrize("kind", ["bias", "generic", "softcap"])
@pytest.mark.parametrize("need", DIFFERENTIABLE, ids=lambda need: need.name)
def test_gradients_of_needs_pass_through_the_chunks(kind: str, need: Need) -> None:
    head, hidden = make_head(kind), make_hidden().requires_grad_()
    scores = scored(hidden, head, (need,))
    found = gradients((weights() * (scores[need.name] + scores.logprobs)).sum(), hidden, head)
    whole = Chunk(head.logits(hidden), BATCH.tokens, BATCH.key, REFERENCE)
    plain = need.function(whole) + plain_logprobs(hidden, head, BATCH.tokens)
    expected = gradients((weights() * plain).sum(), hidden, head)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bias", "generic"])
@pytest.mark.parametrize("others", [(), (ENTROPY,)], ids=["alone", "beside a need with gradient"])
def test_needs_for_logs_carry_no_graph(kind: str, others: tuple[Need, ...]) -> None:
    head, hidden = make_head(kind), make_hidden().requires_grad_()
    scores = scored(hidden, head, (*FIXED, *others))
    assert scores.logprobs.requires_grad
    assert not any(scores[need.name].requires_grad for need in FIXED)
    for need in others:
        alone = scored(hidden, head, (need,))[need.name]
        pairs = zip(*(gradients(x.sum(), hidden, head) for x in (scores[need.name], alone)), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("kind", ["plain", "generic"])
def test_probabilities_of_zero_give_no_nan(kind: str) -> None:
    head, hidden = make_head(kind), (1000 * make_hidden()).requires_grad_()
    scores = scored(hidden, head, (*DIFFERENTIABLE, *FIXED))
    assert float(scores.logprobs.detach().min()) < -1000
    total = scores.logprobs.sum() + sum(scores[need.name].sum() for need in DIFFERENTIABLE)
    assert all(gradient.isfinite().all() for gradient in gradients(total, hidden, head))
    alone = gradients(scored(hidden, head).logprobs.sum(), hidden, head)
    assert all(gradient.isfinite().all() for gradient in alone)


def test_a_need_of_a_reference_that_is_not_there_is_refused() -> None:
    head, hidden = make_head("plain"), make_hidden()
    with pytest.raises(ValueError, match="the policy has none"):
        token_scores(hidden, head, BATCH, (REFERENCE_LOGPROBS,))
    undeclared = Need("undeclared", lambda chunk: chunk.reference_log_softmax.sum(-1))
    with pytest.raises(ValueError, match="does not declare reference=True"):
        scored(hidden, head, (undeclared,))


def test_a_score_that_was_not_asked_for_is_named() -> None:
    with pytest.raises(KeyError, match=r"'entropy' was not asked for \(there are: logprobs, correct\)"):
        scored(make_hidden(), make_head("plain"), (CORRECT,))["entropy"]


def test_a_second_derivative_of_the_hand_written_backward_pass_is_refused() -> None:
    hidden = make_hidden().requires_grad_()
    loss = scored(hidden, make_head("plain")).logprobs.square().sum()
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # type: ignore[no-untyped-call]


class Largest(TorchDispatchMode):
    """Watches the largest tensor that any operation gives, in the forward and the backward pass."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("needs", [(), (CORRECT, REFERENCE_LOGPROBS), (ENTROPY, REVERSE_KL)])
def test_no_tensor_of_all_tokens_by_the_vocabulary_ever_exists(needs: tuple[Need, ...]) -> None:
    vocabulary = 4000
    batch = collate(random_step(0, [400], trained=1.0))
    head, hidden = make_head("plain", vocabulary), make_hidden(len(batch.tokens)).requires_grad_()

    def reference(at: slice) -> Tensor:
        return head.logits(hidden[at].detach())

    saved = []
    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            scores = token_scores(hidden, head, batch, needs, reference, logits_per_chunk=16 * vocabulary)
        sum((scores[need.name].sum() for need in needs), scores.logprobs.sum()).backward()
    assert head.projection.weight.grad is not None
    assert 15 * vocabulary < largest.elements <= 16 * vocabulary < len(hidden) * vocabulary / 20
    # Of the last chunk (15 rows) autograd keeps what it needs: a dozen tensors. The others are computed again.
    last_chunk = 12 * 15 * vocabulary if any(need.differentiable for need in needs) else 0
    assert sum(saved) <= hidden.numel() + head.projection.weight.numel() + 4 * len(hidden) + last_chunk


UNIFORMS = Need("uniforms", lambda chunk: chunk.uniforms(3), differentiable=False)


def uniforms(keys: Tensor, count: int, seed: int = 0) -> Tensor:
    return Chunk(torch.zeros(len(keys), 1), keys * 0, keys, seed=seed).uniforms(count)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8), st.integers(1, 5), st.integers(-(2**40), 2**70))
def test_draws_lie_in_the_unit_interval_and_depend_on_seed_token_and_number_alone(
    keys: list[int], count: int, seed: int
) -> None:
    found = uniforms(torch.tensor(keys), count, seed)
    assert found.shape == (len(keys), count)
    assert ((found >= 0) & (found < 1)).all()
    for n, key in enumerate(keys):
        assert torch.equal(uniforms(torch.tensor([key]), count + 2, seed)[0, :count], found[n])


def test_draws_are_uniform_and_independent_of_one_another() -> None:
    keys = BATCH.key[0] + torch.arange(4000)
    found = uniforms(keys, 4).numpy()
    other = uniforms(keys, 4, seed=1).numpy()
    for draw in range(4):
        assert stats.kstest(found[:, draw], "uniform").pvalue > 1e-3
        assert stats.kstest(found[:20, draw], "uniform").pvalue > 1e-3
    assert stats.kstest(found[0], "uniform").pvalue > 1e-3
    series = [*found.T, *other.T, found[1:, 0], found[:-1, 0]]
    for i, first in enumerate(series):
        for second in series[:i]:
            size = min(len(first), len(second))
            if not (i == 9 and second is series[0]):  # the same draws, one shorter
                assert stats.pearsonr(first[:size], second[:size]).pvalue > 1e-4


@pytest.mark.parametrize("rows", [16, 1000])
@settings(max_examples=10)
@given(st.permutations(range(4)), st.integers(1, 3), st.sampled_from(["padded", "packed"]))
def test_draws_are_the_same_however_a_step_is_cut(rows: int, order: list[int], at: int, layout: Any) -> None:
    step = random_step(0, [30, 12, 1, 25])
    head = make_head("plain")
    whole = scored(make_hidden(), head, (UNIFORMS,), rows, replace(BATCH, step=Step(seed=5)))["uniforms"]
    by_token = dict(zip(BATCH.key.tolist(), whole, strict=True))
    for part in (order[:at], order[at:]):
        batch = replace(collate([step[index] for index in part], layout=layout), step=Step(seed=5))
        found = scored(make_hidden(len(batch.tokens)), head, (UNIFORMS,), 16, batch)["uniforms"]
        assert all(torch.equal(by_token[key], draws) for key, draws in zip(batch.key.tolist(), found, strict=True))


def test_the_backward_pass_sees_the_draws_of_the_forward_pass() -> None:
    def sampled(chunk: Chunk) -> Tensor:
        index = (chunk.uniforms(1) * VOCABULARY).long()
        return chunk.log_softmax.gather(-1, index).squeeze(-1)

    head, hidden = make_head("bias"), make_hidden().requires_grad_()
    found = scored(hidden, head, (Need("sampled", sampled),))["sampled"]
    index = (uniforms(BATCH.key, 1) * VOCABULARY).long()[:, 0]
    expected = plain_logprobs(hidden, head, index)
    pairs = zip(*(gradients(x.sum(), hidden, head) for x in (found, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "bias", "scale", "softcap", "generic"])
@pytest.mark.parametrize("rows", [16, 1000])
@pytest.mark.parametrize("needs", [(), (ENTROPY, REVERSE_KL)], ids=["fast", "needs"])
def test_scores_are_at_the_temperature_that_a_sequence_was_drawn_at(
    kind: str, rows: int, needs: tuple[Need, ...]
) -> None:
    given = torch.tensor([0.5, 0.0, 1.0, 2.0])  # 0: a sequence that says nothing
    batch = replace(BATCH, scalars={"temperature": given})
    temperature = torch.tensor([0.5, 1.0, 1.0, 2.0])[BATCH.sequence][:, None]
    head, hidden = make_head(kind), make_hidden().requires_grad_()
    found = token_scores(hidden, head, batch, needs, lambda at: REFERENCE[at], rows * VOCABULARY)
    expected = (head.logits(hidden) / temperature).log_softmax(-1)
    chosen = expected.gather(-1, BATCH.tokens[:, None]).squeeze(-1)
    torch.testing.assert_close(found.logprobs, chosen, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(x.sum(), hidden, retain_graph=True)[0] for x in (found.logprobs, chosen))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if needs:
        reference = (REFERENCE / temperature).log_softmax(-1)
        torch.testing.assert_close(found["entropy"], -(expected.exp() * expected).sum(-1), rtol=1e-4, atol=1e-4)
        kl = (expected.exp() * (expected - reference)).sum(-1)
        torch.testing.assert_close(found["reverse_kl"], kl, rtol=1e-4, atol=1e-4)


def test_the_last_chunk_is_not_computed_again() -> None:
    """It comes first in the backward pass, which would hold it anyhow."""
    seen: list[int] = []

    def counted(chunk: Chunk) -> Tensor:
        seen.append(len(chunk.tokens))
        return chunk.log_softmax.mean(-1)

    for rows, expected in ((1000, 1), (TOKENS - 1, 3)):
        seen.clear()
        scores = token_scores(
            make_hidden().requires_grad_(),
            make_head("plain"),
            BATCH,
            (Need("counted", counted),),
            None,
            rows * VOCABULARY,
        )
        scores["counted"].sum().backward()
        assert len(seen) == expected
