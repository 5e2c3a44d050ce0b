"""KTO: its numbers (sheet 52, check 5), and the reference point that all cuts of a step share."""

from collections.abc import Sequence as List
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from gradients import batch_of, check_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import on_ranks
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import collate
from posttrain.data.scores import TokenScores
from posttrain.data.step import Step
from posttrain.objectives import build_objective
from posttrain.objectives.kahneman_tversky import REFERENCE_POINT, reference_point
from posttrain.policy import Policy, Reference
from posttrain.training.ranks import Ranks
from posttrain.training.step import Stopwatch, accumulate_gradients, begin


def answer(prompt: list[int], response: list[int], chosen: float) -> Sequence:
    length = len(prompt) + len(response)
    target = np.arange(length) >= len(prompt)
    origin = np.where(target, Origin.DEMONSTRATION, Origin.PROMPT).astype(np.uint8)
    return Sequence(np.array(prompt + response, np.int32), target, origin, f"{prompt}", scalars={"chosen": chosen})


STEP = [
    answer([1, 2], [10, 11, 12], 1),
    answer([3, 4], [20], 1),
    answer([1, 2], [13], 0),
    answer([5, 6, 7], [30, 31, 32, 33], 0),
    answer([3, 4], [21, 22], 0),
]


# The loss


@pytest.mark.parametrize(
    ("chosen", "ratio", "point", "expected"),
    [(1, 2, 0, 0.450166), (0, -2, 0, 0.450166), (0, 2, 0, 0.549834), (1, 2, 2, 0.5), (0, 2, 4, 0.450166)],
)
def test_kto_has_the_numbers_of_sheet_52(chosen: float, ratio: float, point: float, expected: float) -> None:
    batch = batch_of([[0, 0]], scalars={"chosen": [chosen], REFERENCE_POINT: [point]})
    scores = TokenScores(torch.tensor([-1.0, -1.0]), {"reference_logprobs": torch.tensor([-1.0, -1.0 - ratio])})
    (term,) = build_objective("kto").terms
    values, metrics = term.function(scores, batch)
    assert values.item() == pytest.approx(expected, abs=1e-6)
    side = "chosen" if chosen else "rejected"
    there = {name for name, value in metrics.items() if not value.isnan().all()}
    assert there == {f"{side}_reward", f"{side}_logprob", REFERENCE_POINT}
    assert metrics[f"{side}_reward"].item() == pytest.approx(0.1 * ratio)


def test_good_and_bad_answers_have_weights_of_their_own() -> None:
    batch = batch_of([[0], [0]], scalars={"chosen": [1, 0], REFERENCE_POINT: [0.0, 0.0]})
    scores = TokenScores(torch.tensor([-1.0, -1.0]), {"reference_logprobs": torch.tensor([-1.0, -1.0])})
    (term,) = build_objective({"name": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.5}).terms
    torch.testing.assert_close(term.function(scores, batch)[0], torch.tensor([0.75, 0.25]))


def test_the_gradient_is_that_of_finite_differences() -> None:
    batch = batch_of([[0, 2], [1], [2, 0]], scalars={"chosen": [1, 0, 1], REFERENCE_POINT: [0.3] * 3})
    generator = torch.Generator().manual_seed(3)
    logits, reference = (torch.randn(5, 3, generator=generator) for _ in range(2))
    check_gradient({"name": "kto", "beta": 0.7, "desirable_weight": 1.2}, batch, logits, reference)


@pytest.mark.parametrize("logprobs", [[0.0, -1e5], [-1e5, 0.0]])
def test_certain_and_impossible_answers_have_finite_losses_and_gradients(logprobs: list[float]) -> None:
    batch = batch_of([[0], [0]], scalars={"chosen": [1, 0], REFERENCE_POINT: [0.0, 0.0]})
    leaf = torch.tensor(logprobs, requires_grad=True)
    (term,) = build_objective("kto").terms
    values = term.function(TokenScores(leaf, {"reference_logprobs": torch.tensor([-1.0, -1.0])}), batch)[0]
    assert bool(values.isfinite().all())
    assert bool(torch.autograd.grad(values.sum(), leaf)[0].isfinite().all())


# Its reference point


class Recorder:
    """Scores that say 1 for every token of an answer, and keep what was asked for."""

    def __init__(self, gain: float = 1.0) -> None:
        self.asked: list[Sequence] = []
        self.gain = gain

    def __call__(self, sequences: List[Sequence], needs: Any) -> list[TokenScores]:
        self.asked = list(sequences)
        zeros = [torch.zeros(sequence.targets) for sequence in sequences]
        return [TokenScores(zero + self.gain, {"reference_logprobs": zero}) for zero in zeros]


def test_every_prompt_is_read_with_the_answer_of_another_one() -> None:
    recorder = Recorder()
    step = reference_point(STEP, Step(score=recorder))
    read = [sequence.tokens.tolist() for sequence in recorder.asked]
    # In order: good [1 2], good [3 4], bad [1 2], bad [3 4], bad [5 6 7]; each reads its predecessor's answer.
    assert read == [[1, 2, 30, 31, 32, 33], [3, 4, 10, 11, 12], [1, 2, 20], [5, 6, 7, 21, 22], [3, 4, 13]]
    assert [sequence.targets for sequence in recorder.asked] == [4, 3, 1, 2, 1]
    assert {sequence.scalars[REFERENCE_POINT] for sequence in step} == {(4 + 3 + 1 + 2 + 1) / 5}
    assert all(np.array_equal(new.tokens, old.tokens) for new, old in zip(step, STEP, strict=True))


def test_mismatched_answers_are_cut_at_the_longest_sequence() -> None:
    recorder = Recorder()
    reference_point([answer([1] * 5, [2], 1), answer([3], [4] * 4, 1)], Step(score=recorder))
    assert [sequence.tokens.tolist() for sequence in recorder.asked] == [[1] * 5 + [4], [3, 2]]


def test_the_reference_point_is_never_below_zero() -> None:
    step = reference_point(STEP, Step(score=Recorder(gain=-1.0)))
    assert {sequence.scalars[REFERENCE_POINT] for sequence in step} == {0.0}


@pytest.mark.parametrize("step", [[], STEP[:1], [STEP[0], STEP[2]], [STEP[0], STEP[0]]])
def test_a_step_with_a_single_prompt_has_a_reference_point_of_zero(step: list[Sequence]) -> None:
    recorder = Recorder()
    assert [sequence.scalars[REFERENCE_POINT] for sequence in reference_point(step, Step(score=recorder))] == [
        0.0
    ] * len(step)
    assert recorder.asked == []


def test_a_sequence_that_comes_twice_reads_the_same_answer_twice() -> None:
    recorder = Recorder()
    reference_point([STEP[0], STEP[1], STEP[0]], Step(score=recorder))
    assert [sequence.tokens.tolist() for sequence in recorder.asked] == [[1, 2, 20], [3, 4, 10, 11, 12], [1, 2, 20]]


def test_a_sequence_without_targets_takes_no_part() -> None:
    silent = replace(STEP[3], target=np.zeros(len(STEP[3]), np.bool_))
    recorder = Recorder()
    step = reference_point([*STEP[:3], silent], Step(score=recorder))
    assert len(recorder.asked) == 3
    assert len({sequence.scalars[REFERENCE_POINT] for sequence in step}) == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_ranks_find_the_same_reference_point_as_one_process(ranks: list[int]) -> None:
    shares = [[sequence for sequence, rank in zip(STEP, ranks, strict=True) if rank == at] for at in range(3)]
    found = on_ranks(shares, lambda share, gather: reference_point(share, Step(score=Recorder(), gather=gather)))
    points = {sequence.scalars[REFERENCE_POINT] for share in found for sequence in share}
    assert points == {2.2}


@pytest.fixture(scope="module")
def policy() -> Policy:
    """In float64, with another model as its reference."""
    policy = Policy(build("llama").double(), tokenizer())
    policy.reference = Reference.of(Policy(build("llama", seed=1).double(), tokenizer()))
    return policy


def step_gradient(policy: Policy, token_budget: int) -> tuple[Tensor, dict[str, float]]:
    policy.model.zero_grad()
    policy.model.train()
    watch = Stopwatch(torch.device("cpu"))
    objective = build_objective("kto")
    begun = begin(0, 1, 0.0, 0, policy=policy, token_budget=token_budget, ranks=Ranks())
    result = accumulate_gradients(policy, objective, STEP, token_budget, begun, Ranks(), watch)
    assert policy.model.training
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()]), result.metrics


def test_the_gradient_does_not_depend_on_the_cut_of_a_step(policy: Policy) -> None:
    expected, metrics = step_gradient(policy, 1000)
    assert metrics[REFERENCE_POINT] > 0
    for budget in (1, 8, 14):
        found, cut_metrics = step_gradient(policy, budget)
        assert float((found - expected).norm()) <= 5e-7 * float(expected.norm())  # float32 log-probs
        assert cut_metrics == pytest.approx(metrics, rel=1e-5)


def test_the_reference_point_is_the_mean_gain_on_mismatched_answers(policy: Policy) -> None:
    recorder = Recorder()
    reference_point(STEP, Step(score=recorder))
    batch = collate(recorder.asked, pad_id=258)
    with torch.no_grad():
        ours = policy.scores(batch).logprobs
        assert policy.reference is not None
        logits = policy.reference.logits(batch)(slice(0, len(batch.tokens)))
        theirs = torch.log_softmax(logits, -1).gather(-1, batch.tokens[:, None]).squeeze(-1)
    expected = float((ours - theirs).sum()) / len(STEP)
    assert step_gradient(policy, 1000)[1][REFERENCE_POINT] == pytest.approx(expected, rel=1e-5)
