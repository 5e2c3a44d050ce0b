"""Losses of reward models, by hand."""

import math

import numpy as np
import pytest
import torch
from gradients import batch_of

from posttrain.data import Origin, Sequence
from posttrain.data.scores import TokenScores
from posttrain.data.whole_answer import whole_answer
from posttrain.errors import UserError
from posttrain.objectives import build_objective


def judged(spec, rewards, chosen, groups):
    """Losses and metrics of answers that are worth so much; and the gradient on each."""
    values = torch.tensor(rewards, dtype=torch.float64, requires_grad=True)
    batch = batch_of([[0]] * len(rewards), scalars={"chosen": chosen}, groups=groups)
    (term,) = build_objective(spec).terms
    loss, metrics = term.function(TokenScores(torch.zeros(len(rewards)), {"rewards": values}), batch)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    return loss, gradient, metrics


def test_golden_numbers_of_bradley_terry():
    loss, gradient, metrics = judged("bradley_terry", [1.0, 0.0, -2.0, 1.0], [1, 0, 0, 1], ["a", "a", "b", "b"])
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(-3))])
    wrong = 1 / (1 + math.e)
    assert gradient[:2].tolist() == pytest.approx([-wrong, wrong])
    assert metrics["reward_margin"].tolist() == [1, 3]
    assert metrics["chosen_reward"].tolist() == [1, 1]
    assert metrics["rejected_reward"].tolist() == [0, -2]
    assert metrics["reward_accuracy"].tolist() == [1, 1]
    assert judged("bradley_terry", [0.0, 0.0], [1, 0], ["a", "a"])[0].item() == pytest.approx(math.log(2))


def test_a_margin_and_a_centre_are_asked_for():
    assert judged({"name": "bradley_terry", "margin": 1.0}, [1.0, 0.0], [1, 0], ["a", "a"])[0].item() == pytest.approx(
        math.log(2)
    )
    plain = judged("bradley_terry", [2.0, 1.0], [1, 0], ["a", "a"])[0].item()
    centred = judged({"name": "bradley_terry", "centre": 0.01}, [2.0, 1.0], [1, 0], ["a", "a"])[0].item()
    assert centred - plain == pytest.approx(0.09)


def test_pairs_are_blind_to_a_shift_and_outcomes_are_not():
    pair = [1, 0], ["a", "a"]
    assert (
        judged("bradley_terry", [3.0, 1.0], *pair)[0].item() == judged("bradley_terry", [13.0, 11.0], *pair)[0].item()
    )
    assert judged("outcome", [3.0, 1.0], *pair)[0].sum() != judged("outcome", [13.0, 11.0], *pair)[0].sum()


def test_an_outcome_is_the_cross_entropy_of_two_logits():
    logits = torch.tensor([[0.3, 1.1], [2.0, -0.4]], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]), reduction="none")
    found, gradient, metrics = judged("outcome", (logits[:, 1] - logits[:, 0]).tolist(), [1, 0], ["a", "b"])
    assert found.tolist() == pytest.approx(expected.tolist())
    assert gradient.tolist() == pytest.approx([-(1 - math.exp(-expected[0])), 1 - math.exp(-expected[1])])
    assert metrics["reward_accuracy"].tolist() == [1, 1]
    assert metrics["chosen_reward"].tolist()[0] == pytest.approx(0.8)
    assert math.isnan(metrics["chosen_reward"][1])


def test_an_answer_is_read_to_its_last_target_and_what_follows_is_left_out():
    target = np.array([False, False, True, True, False])
    tokens = np.array([5, 6, 7, 8, 9], np.int32)
    sequence = Sequence(tokens, target, np.where(target, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8), "a")
    whole = whole_answer(sequence)
    assert whole.tokens[:-1].tolist() == [5, 6, 7, 8]
    assert whole.target.tolist() == [False] * 4 + [True]
    nothing = Sequence(tokens, np.zeros(5, bool), sequence.origin, "b")
    assert whole_answer(nothing) is nothing


def test_a_pair_without_its_other_side_is_refused():
    objective = build_objective("bradley_terry")
    target = np.array([False, True])
    alone = Sequence(np.zeros(2, np.int32), target, target.astype(np.uint8), "a", "pair", scalars={"chosen": 1.0})
    with pytest.raises(UserError, match="one chosen and one rejected"):
        objective.coefficients([whole_answer(alone)])
