"""Rewards of length and of where an answer stands, against the numbers of sheet 49."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.advantages import Outcomes, build_advantage
from posttrain.data import Origin, Sample, Sequence, user
from posttrain.data.batch import collate
from posttrain.data.scores import TokenScores
from posttrain.objectives.policy_gradient import _ppo, kl
from posttrain.rewards import Attempt, Moment, Score, build_reward
from posttrain.rewards.shaping import answer_before_end, cosine_length, relative_length

LENGTHS = [0, 10_000, 15_000, 20_000, 30_000, 40_000]


def attempt(length: int = 4, right: bool = True, text: str | None = None) -> Attempt:
    """`length` is that of the text, and of its tokens."""
    return Attempt(
        sample=Sample((user("6 * 7?"),), answer="42"),
        text="x" * length if text is None else text,
        tokens=np.zeros(length, np.int32),
        logprobs=np.zeros(length, np.float32),
        finish_reason="stop",
        verify=lambda sample, text: Score(float(right)),
    )


def relative(lengths: list[int], right: list[bool], **more: Any) -> list[float]:
    return relative_length([attempt(*pair) for pair in zip(lengths, right, strict=True)], 0.0, **more)


@pytest.mark.parametrize("unit", ["characters", "tokens"])
def test_golden_cosine(unit: Any) -> None:
    right = [cosine_length(attempt(length), longest=30_000, unit=unit) for length in LENGTHS]
    assert right == pytest.approx([1, 0.775, 0.55, 0.325, 0.1, 0.1])
    wrong = [cosine_length(attempt(length, False), longest=30_000, unit=unit) for length in LENGTHS]
    assert wrong == pytest.approx([-value for value in right])


def test_other_ends_of_the_cosine() -> None:
    found = [cosine_length(attempt(n, False), longest=10, right=(2, 0), wrong=(-10, 0)) for n in (0, 5, 10)]
    assert found == pytest.approx([-10, -5, 0])


def test_golden_length_reward_of_a_group() -> None:
    lengths = [100, 200, 300]
    assert relative(lengths, [True] * 3, cap_wrong=True) == pytest.approx([0.5, 0, -0.5])
    assert relative(lengths, [False] * 3, cap_wrong=True) == pytest.approx([0, 0, -0.5])
    assert relative(lengths, [False, True, False], cap_wrong=True) == pytest.approx([0, 0, -0.5])
    assert relative([7, 7], [True, False], cap_wrong=True) == [0, 0]
    assert relative(lengths, [False] * 3) == pytest.approx([0.5, 0, -0.5])


def test_an_answer_that_cannot_be_verified_is_not_a_wrong_one() -> None:
    unknown = replace(attempt(4), verify=lambda sample, text: Score(0.0, error="no answer to compare with"))
    for spec in ({"name": "cosine_length", "longest": 10}, {"name": "relative_length", "cap_wrong": True}):
        ((right, found),) = build_reward(spec)([[attempt(9), unknown]], Moment())
        assert right.error is None
        assert found.error == "no answer to compare with"


def test_golden_sum_and_advantages_of_a_group() -> None:
    lengths, right, form = [4000, 8000, 12_000, 6000], [True, True, False, False], [1, 1, 1, 0]
    group = [attempt(*pair) for pair in zip(lengths, right, strict=True)]
    cosine = [cosine_length(one, longest=30_000) for one in group]
    assert cosine == pytest.approx([0.9611, 0.8511, -0.6891, -0.9141], abs=5e-5)
    length = relative_length(group, 0.0, cap_wrong=True)
    assert length == pytest.approx([0.5, 0, -0.5, 0])
    total = np.array(cosine) + length + form
    assert total == pytest.approx([2.4611, 1.8511, -0.1891, -0.9141], abs=5e-5)
    outcomes = Outcomes(total, np.zeros(4, np.int64), np.ones(4, np.int64))
    found = build_advantage({"name": "group", "eps": 1e-4})(outcomes)["advantage"]
    assert [float(column[0]) for column in found] == pytest.approx([1.0300, 0.6512, -0.6155, -1.0657], abs=5e-5)


def test_the_sum_may_prefer_a_wrong_answer() -> None:
    longest_right = relative([30_000, 10_000, 20_000], [True] * 3, cap_wrong=True)[0]
    assert cosine_length(attempt(40_000), longest=30_000) + longest_right == pytest.approx(-0.4)
    middle_wrong = relative([10_000, 20_000, 30_000], [True, False, True], cap_wrong=True)[1]
    assert cosine_length(attempt(40_000, False), longest=30_000) + middle_wrong + 1 == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\boxed{4}</think>", 1),
        (r"</think>\boxed{4}", 0),
        (r"\boxed{4}", 0),
        (r"\boxed{}</think>", 1),
        ("so \\boxed{4}\nagain\n</think> 4", 1),
        (r"\boxed{4</think>}", 0),
    ],
)
def test_golden_form(text: str, value: float) -> None:
    assert answer_before_end(attempt(text=text)) == value


def test_the_form_of_other_answers() -> None:
    inside = attempt(text="<think>7<answer>7</answer></think>")
    assert answer_before_end(inside, answer="<answer>.+?</answer>") == 1
    assert answer_before_end(inside) == 0
    assert answer_before_end(attempt(text="<answer>7</answer> STOP"), answer="<answer>|ANSWER", end="STOP") == 1


def loss(advantage: float, logprob: float, old: float, reference: float, count: int = 1) -> float:
    """Clipped surrogate plus 0.04 k3, the mean over tokens."""
    sequence = Sequence(
        tokens=np.arange(count + 1, dtype=np.int32),
        target=np.arange(count + 1) > 0,
        origin=np.full(count + 1, Origin.ROLLOUT, np.uint8),
        sample_id="a",
        columns={
            "advantage": np.full(count + 1, advantage, np.float32),
            "old_logprobs": np.full(count + 1, old, np.float32),
        },
    )
    scores = TokenScores(torch.full((count,), logprob), {"reference_logprobs": torch.full((count,), reference)})
    batch = collate([sequence])
    surrogate, _ = _ppo(scores, batch)  # type: ignore[misc]
    held, _ = kl(scores, batch)  # type: ignore[misc]
    return float((surrogate + 0.04 * held).mean())


def test_golden_losses() -> None:
    assert loss(2.0, -1.0, -1.0, -1.0, count=3) == -2.0
    assert loss(1.0, -0.5, -1.0, -0.7) == pytest.approx(-1.199251, abs=1e-6)
    assert loss(-1.0, -0.5, -1.0, -0.7) == pytest.approx(1.649471, abs=1e-6)
