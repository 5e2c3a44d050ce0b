"""Golden numbers of sheet 15 (arXiv 2510.21090), checks 3, 4 and 6: where self-rewarding PPO ends on a bandit.

Three answers of one token. Every round scores them with the reward `log_ratio`, takes the KL off, and follows the exact
policy gradient of our loss: each answer counts by its probability. Checks 1, 2, 5 and 7: rewards/test_log_ratio.py.
"""

from typing import Any

import numpy as np
import pytest
import torch
from gradients import batch_of, gradient, losses
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.advantages import build_advantage
from posttrain.data import Sample, user
from posttrain.data.scores import TokenScores
from posttrain.data.step import Step
from posttrain.generation import Sampling
from posttrain.rewards import Attempt, Moment, build_reward
from posttrain.sources.rollout import Rollout, RolloutSettings
from posttrain.sources.weighing import KLWeight, RunningMoments, weighed

BASE, TUNED = [0.6, 0.3, 0.1], [0.3, 0.6, 0.1]
QUESTION, PROMPT = Sample((user("?"),)), np.array([7], np.int32)
TOKENS = range(3)
UNWHITENED = build_advantage({"name": "gae", "whiten": False})


def said_by(probabilities: Any) -> Any:
    """Log-probs of each sequence's one token under these probabilities."""
    logs = torch.as_tensor(probabilities, dtype=torch.float64).log()
    return lambda sequences: [logs[sequence.tokens[-1:].tolist()] for sequence in sequences]


def ask(model: str | None, sequences: Any, needs: Any) -> list[TokenScores]:
    assert model is not None, "the reward depends on frozen models only"
    return [TokenScores(logs) for logs in said_by({"sft": TUNED, "base": BASE}[model])(sequences)]


def advantages(policy: Tensor, reference: list[float], beta: float, weight: float) -> list[float]:
    """Of the three answers, as rollouts have them."""
    sampled = policy.log().numpy().astype(np.float32)
    attempts = [
        Attempt(QUESTION, "", np.array([token], np.int32), sampled[[token]], "stop", prompt=PROMPT) for token in TOKENS
    ]
    reward = build_reward({"name": "log_ratio", "model": "sft", "weight": weight})
    (scores,) = reward([attempts], Moment(ask=ask))

    def score(sequences: Any, needs: Any) -> list[TokenScores]:
        both = zip(said_by(policy)(sequences), said_by(reference)(sequences), strict=True)
        return [TokenScores(own, {"reference_logprobs": other, "values": 0 * own}) for own, other in both]

    sequences = weighed(
        [Rollout(attempt, score, draw) for draw, (attempt, score) in enumerate(zip(attempts, scores, strict=True))],
        Step(0, 1, seed=0, score=score),
        RolloutSettings(3, 1, Sampling(max_new_tokens=1), kl_in_reward=beta, values=True),
        UNWHITENED,
        KLWeight(beta),
        RunningMoments(),
    )
    return [float(sequence.columns["advantage"][-1]) for sequence in sequences]


def exact_gradient(logits: Tensor, reference: list[float], beta: float, weight: float = 1.0) -> Tensor:
    """`[3]`: of the expected loss `ppo`, over all answers that the policy may give."""
    policy = logits.softmax(-1)
    columns = {"advantage": [[a] for a in advantages(policy, reference, beta, weight)]}
    columns["old_logprobs"] = [[float(p)] for p in policy.log()]
    batch = batch_of([[token] for token in TOKENS], columns=columns)
    return gradient(lambda leaf: policy.detach() * losses("ppo", batch, leaf.expand(3, 3)), logits)


def optimum(reference: list[float], beta: float, weight: float = 1.0) -> list[float]:
    """Natural gradient: on a softmax the gradient over the probabilities, halving the distance each step."""
    logits = torch.tensor(TUNED, dtype=torch.float64).log()
    for _ in range(40):
        policy = logits.softmax(-1)
        logits = logits - exact_gradient(logits, reference, beta, weight) / policy / (2 * beta * weight)
        logits = logits - logits.logsumexp(-1)
    return logits.exp().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("reference", "beta", "expected"),
    [
        (BASE, 1.0, [0.3, 0.6, 0.1]),  # coherence: what demonstrations taught is optimal
        (TUNED, 1.0, [0.103448, 0.827586, 0.068966]),
        (BASE, 0.5, [0.103448, 0.827586, 0.068966]),
        (TUNED, 0.1, [0.0, 0.999837, 0.000163]),
        (TUNED, 20.0, [0.286645, 0.614437, 0.098918]),
    ],
)
def test_golden_optima_of_a_bandit(reference: list[float], beta: float, expected: list[float]) -> None:
    closed = np.array(reference) * (np.array(TUNED) / np.array(BASE)) ** (1 / beta)
    assert closed / closed.sum() == pytest.approx(expected, abs=1e-6)
    assert optimum(reference, beta) == pytest.approx(expected, abs=2e-6)
    assert exact_gradient(torch.tensor(closed).log(), reference, beta).abs().max() < 2e-6


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_a_reward_and_a_kl_of_another_scale_have_the_same_optimum(factor: float) -> None:
    logits = torch.tensor(optimum(TUNED, 0.5)).log()
    assert exact_gradient(logits, TUNED, factor * 0.5, factor).abs().max() < 2e-5
    assert exact_gradient(logits, TUNED, 0.5, factor).abs().max() > 1e-2


def test_without_a_kl_one_answer_gets_everything() -> None:
    step = -exact_gradient(torch.tensor(TUNED).double().log(), TUNED, 0.0)
    assert step.argmax() == 1
    nearly = torch.tensor([1e-4, 1 - 2e-4, 1e-4], dtype=torch.float64).log()
    assert -exact_gradient(nearly, TUNED, 0.0)[1] > 0


def test_golden_expected_rewards_of_both_models() -> None:
    ratio = np.log(np.array(TUNED) / np.array(BASE))
    assert ratio == pytest.approx([-np.log(2), np.log(2), 0])
    assert np.dot(TUNED, ratio) == pytest.approx(0.207944, abs=1e-6)
    assert np.dot(BASE, ratio) == pytest.approx(-0.207944, abs=1e-6)


@given(st.lists(st.floats(0.05, 1), min_size=9, max_size=9))
def test_the_expected_reward_is_how_much_nearer_the_tuned_model_is(numbers: list[float]) -> None:
    policy, tuned, base = (row / row.sum() for row in np.array(numbers).reshape(3, 3))
    kl = [float((policy * np.log(policy / other)).sum()) for other in (base, tuned)]
    assert float((policy * np.log(tuned / base)).sum()) == pytest.approx(kl[0] - kl[1], abs=1e-12)
