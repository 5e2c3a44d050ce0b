"""Golden numbers of sheet 13 (arXiv 2604.18574) for what was there before: advantages, distance to the start, pass@k.

Its other checks stand beside what they check: votes, certainty and gate in rewards/test_unlabelled.py, saturation in
evaluation/test_saturation.py, noise in curation/test_noisy_answers.py.
"""

import numpy as np
import pytest
import torch

from posttrain.advantages import Outcomes, build_advantage
from posttrain.data.scores import TokenScores
from posttrain.evaluation.metrics import pass_at_k
from posttrain.objectives.policy_gradient import kl


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [
        ([1, 0, 0, 0, 0, 0, 0, 0], [2.4748667342] + 7 * [-0.3535523906]),
        ([1, 1, 1, 1, 0, 0, 0, 0], 4 * [0.9354125967] + 4 * [-0.9354125967]),
        ([1, 1, 1, 1, 1, 1, 1, 1], 8 * [0.0]),
        ([1], [0.0]),  # the paper's code: 0.999999, with nothing to compare with
    ],
)
def test_golden_advantages(rewards: list[float], advantages: list[float]) -> None:
    size = len(rewards)
    outcomes = Outcomes(np.array(rewards, float), np.zeros(size, np.int64), np.ones(size, np.int64))
    assert np.concatenate(build_advantage("group")(outcomes)["advantage"]) == pytest.approx(advantages, abs=1e-10)


def test_golden_distance_to_the_start() -> None:
    def k3(policy: list[float], start: list[float]) -> list[float]:
        scores = TokenScores(torch.tensor(policy), {"reference_logprobs": torch.tensor(start)})
        return kl(scores, None)[0].tolist()  # type: ignore[arg-type, index]

    assert k3([-1.0, -2.0], [-1.5, -1.0]) == pytest.approx([0.1065306597, 0.7182818285], abs=1e-6)
    assert k3([-1.0], [-1.0]) == [0]
    assert min(k3([-3.0, -0.1, -2.0], [-0.1, -3.0, -2.5])) > 0


def test_golden_pass_at_k_of_two_right_answers_of_eight() -> None:
    found = [float(pass_at_k(8, 2, k)) for k in (1, 2, 4, 8)]
    assert found == pytest.approx([0.25, 0.4642857143, 0.7857142857, 1.0], abs=1e-9)
