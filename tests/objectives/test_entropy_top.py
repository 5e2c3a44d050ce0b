"""The ablation of CHORD-φ by which only the tokens with the highest entropy teach (sheet 43)."""

from collections.abc import Sequence as List
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from gradients import LogitsPolicy, gradient, losses, results, step_of
from hypothesis import given
from hypothesis import strategies as st
from steps import on_ranks, random_step
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import Batch, Layout, collate
from posttrain.data.step import Gather, Step, alone
from posttrain.data.uncertainty import rank_among
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.policy.scoring import scored

SPEC = {"name": "chord_phi", "by": "entropy_top"}


def two_tokens(*p: float) -> Tensor:
    """Token 0 of a vocabulary of two has these probabilities: its entropy is the higher, the nearer they are to 1/2."""
    given = torch.tensor(p, dtype=torch.float64)
    return torch.stack([given.log(), (1 - given).log()], -1)


def prepared(spec: Any, sequences: List[Sequence], logits: Tensor, gather: Gather = alone) -> list[Sequence]:
    """The step as the loss wants it, with a policy that says `logits` of its targets, in their order."""
    starts = np.cumsum([0, *(int(s.target.sum()) for s in sequences)])
    own = {s.sample_id: logits[a:b] for s, a, b in zip(sequences, starts, starts[1:], strict=False)}
    targets = {s.sample_id: s.target for s in sequences}

    def score(asked: List[Sequence], needs: Any) -> list[Any]:
        rows = [(s, own[s.sample_id][torch.from_numpy(s.target[targets[s.sample_id]])]) for s in asked]
        return [LogitsPolicy(row).scores(collate([s]), needs) for s, row in rows]

    return list(build_objective(spec).prepare(sequences, Step(score=score, gather=gather)))


def batch(spec: Any, sequences: List[Sequence], logits: Tensor) -> Batch:
    return collate(prepared(spec, sequences, logits))


def test_of_twenty_tokens_the_least_sure_one_teaches() -> None:
    sequences, logits = step_of([[0] * 12, [0] * 8]), two_tokens(*[0.9] * 13, 0.6, *[0.95] * 6)
    found, metrics = results(SPEC, batch(SPEC, sequences, logits), logits)
    expected = np.zeros(20)
    expected[13] = 1
    assert metrics["weight"].tolist() == expected.tolist()
    np.testing.assert_allclose(found, expected * -np.log(0.6))


@pytest.mark.parametrize(("share", "expected"), [(0.2, 1), (0.4, 2), (0.41, 3), (1.0, 5), (0.01, 1)])
def test_the_share_is_of_the_step_and_at_least_one_token(share: float, expected: int) -> None:
    spec, logits = {**SPEC, "share": share}, two_tokens(0.9, 0.5, 0.2, 0.6, 0.99)
    weight = results(spec, batch(spec, step_of([[0, 0], [0, 0, 0]]), logits), logits)[1]["weight"]
    assert weight.tolist() == [float(rank < expected) for rank in (3, 0, 2, 1, 4)]


def test_what_teaches_has_the_gradient_of_likelihood_and_the_rest_none() -> None:
    logits = two_tokens(0.9, 0.6)
    at = batch(SPEC, step_of([[0, 0]]), logits)
    found = gradient(lambda leaf: losses(SPEC, at, leaf), logits)
    np.testing.assert_allclose(found, [[0, 0], [-0.4, 0.4]], atol=1e-12)


def test_own_answers_are_not_ranked_and_weigh_nothing() -> None:
    own, shown = step_of([[0, 0], [0, 0]])
    own = replace(own, origin=np.where(own.target, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8))
    logits = two_tokens(0.5, 0.5, 0.9, 0.8)
    assert results(SPEC, batch(SPEC, [own, shown], logits), logits)[1]["weight"].tolist() == [0, 0, 0, 1]


def test_the_denominator_counts_every_demonstrated_token() -> None:
    """Of sheet 43: the normaliser is the number of tokens, not the sum of the weights."""
    logits = two_tokens(0.9, 0.6, 0.9, 0.9)
    sequences = prepared(SPEC, step_of([[0, 0], [0, 0]]), logits)
    objective = build_objective(SPEC)
    at = objective.attach(collate(sequences), sequences, objective.coefficients(sequences))
    assert objective.loss(LogitsPolicy(logits), at).value.item() == pytest.approx(-np.log(0.6) / 4)


def test_tokens_are_ranked_over_all_ranks() -> None:
    sequences, logits = step_of([[0, 0], [0, 0]]), two_tokens(0.9, 0.6, 0.8, 0.5)
    shares = [([sequences[0]], logits[:2]), ([sequences[1]], logits[2:]), ([], logits[:0])]
    found = on_ranks(shares, lambda share, gather: prepared(SPEC, *share, gather=gather))
    for (ours,), theirs in zip(found[:2], prepared(SPEC, sequences, logits), strict=True):
        np.testing.assert_array_equal(ours.columns["uncertainty_rank"], theirs.columns["uncertainty_rank"])
    assert found[2] == []


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0.01, 1))
def test_so_many_have_a_rank_below_a_share(values: list[float], share: float) -> None:
    ranks = rank_among(np.sort(values), np.array(values))
    many = int((ranks < share).sum())
    assert many >= share * len(values) - 1e-9
    if len(set(values)) == len(values):
        assert many == np.ceil(share * len(values) - 1e-9)


def test_equally_uncertain_tokens_all_teach() -> None:
    logits = two_tokens(0.7, 0.7, 0.7)
    assert results(SPEC, batch(SPEC, step_of([[0, 0, 0]]), logits), logits)[1]["weight"].tolist() == [1, 1, 1]


def test_the_other_weights_need_nothing_of_the_step_before() -> None:
    for by in ("phi", "importance", "entropy"):
        assert build_objective({"name": "chord_phi", "by": by}).terms[0].prepare is None


def test_a_weight_that_is_none_is_named() -> None:
    with pytest.raises(UserError, match="'entropy' or 'entropy_top'"):
        build_objective({"name": "chord_phi", "by": "entropy_norm"})


def test_the_gradient_is_the_same_for_every_split() -> None:
    policy = Policy(build("llama").double(), tokenizer())
    step = random_step(1, [30, 3, 17, 9, 1, 12])
    objective = build_objective({**SPEC, "share": 0.3})

    def score(asked: List[Sequence], needs: Any) -> list[Any]:
        return [scores for _, scores in sorted(scored(policy, asked, needs, 64), key=lambda found: found[0])]

    sequences = objective.prepare(step, Step(score=score))

    def whole(cut: list[list[int]], layout: Layout) -> Tensor:
        policy.model.zero_grad()
        rows = objective.coefficients(sequences)
        for part in cut:
            chosen = [sequences[i] for i in part]
            at = objective.attach(collate(chosen, pad_id=258, layout=layout), chosen, [rows[i] for i in part])
            objective.loss(policy, at).value.backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])

    expected = whole([list(range(6))], "padded")
    assert expected.norm() > 1e-4
    for cut, layout in [([[i] for i in range(6)], "padded"), ([[5, 2, 4], [1], [0, 3]], "packed")]:
        assert float((whole(cut, layout) - expected).norm()) < 1e-6 * float(expected.norm())
