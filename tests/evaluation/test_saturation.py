"""Golden numbers of sheet 13, check 7, and what the rule does at its edges."""

import numpy as np
import pytest

from posttrain.evaluation.saturation import Saturation, saturation, saturation_step

STEPS = [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("rewards", "step"),
    [([0.1, 0.9, 1, 1, 1], 20), ([0.1, 0.3, 0.5, 0.7, 0.9], 40), ([0.1, 0.95, 1, 1, 1], 10)],
)
def test_golden_steps_of_saturation(rewards: list[float], step: int) -> None:
    assert saturation_step(STEPS, rewards) == step


def test_the_mean_trails_over_fewer_points_at_the_start() -> None:
    # means over 3: 0, .5, .667, 1, .667: a single high point is not enough, and later falls do not matter
    assert saturation_step(STEPS, [0, 1, 1, 1, 0], window=3) == 30
    assert saturation_step(STEPS, [1, 0, 0, 0, 0], window=3) == 0


def test_a_reward_below_zero_saturates_as_near_to_its_best() -> None:
    assert saturation_step(STEPS, [-4, -2, -1.04, -1.0, -1.02]) == 20
    assert saturation_step(STEPS, [0, 0, 0, 0, 0]) == 0


def test_the_step_depends_on_the_shape_of_the_curve_alone() -> None:
    rewards = np.random.default_rng(0).random(50)
    steps = list(range(50))
    assert saturation_step(steps, rewards, window=5) == saturation_step(steps, 7 * rewards, window=5)


def test_nothing_logged_is_refused() -> None:
    with pytest.raises(ValueError, match="reward"):
        saturation_step([], [])


def rows(column: str, steps: list[int], values: list[float | None]) -> list[dict[str, float]]:
    return [
        {"step": s, "seconds": 1.0, **({column: v} if v is not None else {})}
        for s, v in zip(steps, values, strict=True)
    ]


def test_held_out_gains_are_parted_at_saturation() -> None:
    train = rows("reward", STEPS, [0.1, None, 0.9, 1, 1])
    watched = rows("accuracy", [0, 15, 25, 40], [0.2, 0.3, 0.5, 0.45])
    found = saturation(train, watched)
    assert found is not None
    assert (found.step, found.last) == (30, 40)
    assert (found.before, found.after) == pytest.approx((0.25, 0.0))  # no evaluation at 30: the next one counts
    assert saturation(train) == Saturation(30, 40)
    assert saturation(rows("loss", STEPS, [1, 1, 1, 1, 1])) is None
