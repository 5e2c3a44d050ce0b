"""Schedules of a run; numbers of sheet 43 (CHORD) and sheet 37 (Prefix-RFT)."""

from dataclasses import replace

import pytest

from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.schedules import build_schedule, settled, value_at


def values(spec, steps, total=1000, **more):
    return [value_at(build_schedule(spec, "weight"), Step(index=index, total=total, **more)) for index in steps]


def test_golden_numbers_of_chord():
    mu = {"name": "cosine", "start": 0.9, "end": 0.05, "steps": 200}
    assert values(mu, (0, 50, 100, 150, 200, 500)) == pytest.approx(
        [0.9, 0.77552, 0.475, 0.17448, 0.05, 0.05], abs=1e-5
    )
    warm = {"name": "cosine", "start": 0.4, "end": 0.0, "steps": 20, "warmup": 10}
    assert values(warm, (0, 5, 10, 20, 30)) == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    assert values({"name": "cosine", "start": 0.1, "end": 0.1}, (0, 7, 999)) == pytest.approx([0.1] * 3)


def test_golden_numbers_of_the_shortest_prefix():
    low = {"name": "cosine", "start": 0.95, "end": 0.05, "steps": 500}
    assert values(low, (0, 125, 250, 375, 500, 900)) == pytest.approx(
        [0.95, 0.818198, 0.5, 0.181802, 0.05, 0.05], abs=1e-6
    )


def test_lengths_below_1_are_shares_of_the_run():
    whole = {"name": "linear", "start": 1.0, "end": 0.0}
    half = {"name": "linear", "start": 1.0, "end": 0.0, "steps": 0.5}
    assert values(whole, (0, 50, 99), total=100) == pytest.approx([1, 0.5, 0.01])
    assert values(half, (0, 25, 50, 99), total=100) == pytest.approx([1, 0.5, 0, 0])


def test_supervised_then_reinforced_is_a_switch():
    assert values({"name": "switch", "start": 1, "end": 0, "at": 0.5}, (0, 49, 50, 99), total=100) == [1, 1, 0, 0]
    assert values({"name": "switch", "start": 1, "end": 0, "at": 3}, (2, 3)) == [1, 0]


def test_a_weight_may_follow_a_metric():
    spec = {"name": "shortfall", "of": "reward", "below": 0.5}
    assert values(spec, [0], measured={"reward": 0.2}) == pytest.approx([0.3])
    assert values(spec, [0], measured={"reward": 0.7}) == [0]
    assert values({**spec, "most": 0.1}, [0], measured={"reward": 0.2}) == [0.1]
    with pytest.raises(UserError, match=r"no metric 'reward' is measured before step 1.*rewards"):
        values(spec, [0], measured={"rewards": 0.2})


def test_the_complement_is_what_is_left():
    spec = {"name": "linear", "start": 0.9, "end": 0.1}
    both = zip(values(spec, range(5), 5), values({"name": "complement", "of": spec}, range(5), 5), strict=True)
    assert [one + other for one, other in both] == pytest.approx([1] * 5)
    assert values({"name": "complement", "of": 0.25}, [0]) == [0.75]


def test_what_hangs_on_the_step_alone_is_settled():
    switch = build_schedule({"name": "switch", "start": 1, "end": 0, "at": 3}, "weight")
    assert [settled(switch, Step(index=index)) for index in (2, 3)] == [1, 0]
    assert settled(0.25, Step()) == 0.25


def swallowed(step):
    try:
        return step.measured["reward"]
    except Exception:
        return 0.0


@pytest.mark.parametrize("measured", [{}, {"reward": 0.0}])
@pytest.mark.parametrize(
    "users",
    [
        lambda step: step.measured.get("reward", 0.0),
        lambda step: step.measured["reward"],
        lambda step: float("reward" in step.measured),
        lambda step: sum({**step.measured}.values()),
        lambda step: 0.0 if not step.measured else 1.0,
        lambda step: sum(total for total, _ in step.report.values()),
        lambda step: value_at(lambda other: other.measured.get("reward", 0.0), replace(step, index=0)),
        build_schedule({"name": "shortfall", "of": "reward", "below": 0.5}, "weight"),
        swallowed,
    ],
)
def test_a_schedule_that_looks_at_what_is_measured_is_not_settled_however_it_looks(users, measured):
    assert settled(users, Step(measured=measured)) is None
    assert settled(lambda step: 1 - value_at(users, step), Step(measured=measured)) is None


def test_what_goes_wrong_in_a_schedule_that_looks_at_no_metric_is_said_at_once():
    with pytest.raises(ZeroDivisionError):
        settled(lambda step: 1 / step.index, Step(index=0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("much", "weight must be a number, or .name: a schedule"),
        (True, "must be a number"),
        (float("nan"), "must be a number"),
        ({"name": "cosin", "start": 1, "end": 0}, "unknown schedule 'cosin'.*cosine"),
        ({"name": "cosine", "start": 1}, "option 'end'"),
        ({"name": "complement", "of": {"name": "no"}}, "unknown schedule 'no'"),
    ],
)
def test_what_is_no_schedule_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        build_schedule(spec, "weight")
