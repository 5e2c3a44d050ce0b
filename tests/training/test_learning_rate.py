"""Learning-rate schedules: their values, and what transformers makes of the same numbers."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from posttrain.training.learning_rate import ScheduleName, learning_rate_factor

NAMES = st.sampled_from(get_args(ScheduleName))


def theirs(make: Callable[..., Any], total: int, **options: Any) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimiser, **options)
    factors = []
    for _ in range(total):
        factors.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return factors


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("constant", get_constant_schedule_with_warmup, {}),
        ("linear", get_linear_schedule_with_warmup, {"num_training_steps": 50}),
        ("cosine", get_cosine_schedule_with_warmup, {"num_training_steps": 50}),
        ("wsd", get_wsd_schedule, {"num_training_steps": 50, "num_decay_steps": 10, "decay_type": "linear"}),
    ],
)
def test_after_the_warm_up_factors_are_those_of_transformers(
    name: ScheduleName, make: Callable[..., Any], options: dict[str, Any]
) -> None:
    expected = theirs(make, 50, num_warmup_steps=8, **options)
    ours = [learning_rate_factor(step, 50, name, warmup=8) for step in range(50)]
    assert ours[8:] == pytest.approx(expected[8:])


def test_the_warm_up_is_that_of_transformers_without_its_first_step_at_rate_0() -> None:
    expected = theirs(get_constant_schedule_with_warmup, 10, num_warmup_steps=5)
    ours = [learning_rate_factor(step, 10, "constant", warmup=4) for step in range(9)]
    assert expected[0] == 0
    assert ours == pytest.approx(expected[1:])


def test_a_warm_up_below_1_is_a_share_of_the_run() -> None:
    shared, counted = (
        [learning_rate_factor(step, 40, "cosine", warmup=warmup) for step in range(40)] for warmup in (0.1, 4)
    )
    assert shared == counted


def test_values_of_a_short_wsd_run() -> None:
    factors = [learning_rate_factor(step, 10, "wsd", warmup=2, decay=0.4, floor=0.2) for step in range(10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4])


@given(NAMES, st.integers(1, 200), st.floats(0, 20), st.floats(0.01, 1), st.floats(0, 1))
def test_factors_rise_once_and_then_never_again(
    name: ScheduleName, total: int, warmup: float, decay: float, floor: float
) -> None:
    factors = [learning_rate_factor(s, total, name, warmup=warmup, decay=decay, floor=floor) for s in range(total)]
    assert all(0 < factor <= 1 for factor in factors[: round(total * 0.9)])
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    if warmup < total - 1:
        assert max(factors) <= 1
        assert min(factors[top:]) >= floor - 1e-12
