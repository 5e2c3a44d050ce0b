"""How answers begin; numbers of sheets 37 (Prefix-RFT) and 09 (SEELE)."""

import numpy as np
import pytest

from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.sources.beginnings import Begun, Visit, build_beginning, check_rounds, step_ends, tokens_of
from posttrain.sources.hints import with_anchors
from posttrain.sources.item_response import Curve, fit


def lengths(beginning, size, draws, index=0, total=500, question="q", place=0, seed=0):
    step, rng = Step(index=index, total=total), np.random.default_rng(seed)
    return beginning.lengths(Visit(question, place), size, draws, step, rng)


def test_golden_lengths_of_prefixes():
    assert [tokens_of(share, 10) for share in (0.05, 0.25, 0.5, 0.95, 1.0)] == [0, 2, 5, 9, 9]
    assert [tokens_of(share, 1) for share in (0.0, 0.5, 1.0)] == [0, 0, 0]
    assert tokens_of(0.5, 0) == 0
    assert tokens_of(0.1, 10, least=3) == 3
    assert tokens_of(0.1, 3, least=5) == 2


def test_one_answer_begins_with_a_prefix_that_may_become_ever_shorter():
    beginning = build_beginning("prefix")
    first = [lengths(beginning, 1000, 8, 0, seed=seed) for seed in range(50)]
    assert all(draws[:7] == [0] * 7 for draws in first)
    assert all(draws[7] == 950 for draws in first)
    last = [lengths(beginning, 1000, 8, 499, seed=seed)[7] for seed in range(200)]
    assert min(last) < 120
    assert max(last) > 880
    assert lengths(beginning, 0, 8) == [0] * 8


def test_the_shortest_prefix_may_be_a_number():
    beginning = build_beginning({"name": "prefix", "low": 0.5, "high": 0.5, "count": 2})
    assert lengths(beginning, 10, 4) == [0, 0, 5, 5]


def test_all_may_begin_with_the_same_share():
    beginning = build_beginning({"name": "share", "share": {"name": "linear", "start": 1.0, "end": 0.0}})
    assert [lengths(beginning, 11, 2, index, 10) for index in (0, 5, 9)] == [[10, 10], [5, 5], [1, 1]]


def test_the_length_of_a_hint_may_be_binomial():
    beginning = build_beginning({"name": "share", "share": 0.25, "spread": "binomial"})
    drawn = [lengths(beginning, 100, 2, seed=seed) for seed in range(400)]
    assert all(one == other for one, other in drawn)  # the same for all answers to a question
    found = np.array([one for one, _ in drawn])
    assert found.mean() == pytest.approx(25, abs=1)
    assert found.std() == pytest.approx((100 * 0.25 * 0.75) ** 0.5, abs=0.5)
    ends = [build_beginning({"name": "share", "share": share, "spread": "binomial"}) for share in (0.0, 1.0)]
    assert [lengths(end, 100, 1) for end in ends] == [[0], [99]]
    assert lengths(ends[1], 0, 1) == [0]


def test_the_last_answers_are_the_demonstration():
    assert lengths(build_beginning("demonstration"), 7, 4) == [0, 0, 0, 7]
    assert lengths(build_beginning({"name": "demonstration", "count": 2}), 7, 4) == [0, 0, 7, 7]
    assert lengths(build_beginning("demonstration"), 0, 4) == [0] * 4


def test_all_answers_go_on_behind_the_same_steps():
    beginning = build_beginning("steps")
    drawn = [lengths(beginning, 3, 2, seed=seed) for seed in range(300)]
    assert all(one == other for one, other in drawn)
    counts = [sum(one == steps for one, _ in drawn) for steps in range(3)]
    assert min(counts) > 70  # each number of steps is as likely, the last step is always left
    assert lengths(beginning, 1, 2) == [0, 0]
    assert lengths(beginning, 0, 2) == [0, 0]


def test_steps_end_behind_line_breaks():
    def text(tokens):
        return "".join(tokens)

    assert step_ends(["a", "\n", "b", "c", ".\n", "\n", "d"], text) == [2, 6, 7]
    assert step_ends(["a"], text) == [1]
    assert step_ends(["a", "\n"], text) == [2]
    assert step_ends([], text) == []


def test_what_says_nothing_at_the_end_is_no_step_of_its_own():
    def text(tokens):
        return "".join(token for token in tokens if token != "<end>")

    assert step_ends(["a", "\n", "b", "\n", "<end>"], text) == [2, 5]
    assert step_ends(["a", "\n", "b", "\n", " ", "\n", "<end>", "\n"], text) == [2, 8]
    assert step_ends(["a", "\n", "b", "<end>"], text) == [2, 4]
    assert step_ends(["a", "\n", "<end>"], text) == [3]
    assert step_ends(["\n", "<end>"], text) == [2]


def searched(beginning, size, needed):
    """The prefixes that a model tries whose answers are right from `needed` tokens on."""
    given = []
    for part in range(beginning.rounds):
        count, other = lengths(beginning, size, 2)
        assert count == other
        given.append(count)
        found = [Begun(Visit("q", 0), count, size, float(count >= needed))] * 2
        beginning.hear(found, last=part == beginning.rounds - 1)
    return given


def test_prefixes_are_searched_for_by_halves_where_nothing_is_right():
    beginning = build_beginning({"name": "branch", "rounds": 5})
    assert searched(beginning, 32, 0) == [0] * 5  # right without: nothing is given
    assert searched(beginning, 32, 11) == [0, 16, 8, 12, 10]
    assert searched(beginning, 32, 30) == [0, 16, 24, 28, 30]
    assert searched(beginning, 32, 99) == [0, 16, 24, 28, 30]
    assert searched(beginning, 3, 2) == [0, 1, 2, 2, 2]  # found
    assert searched(beginning, 1, 1) == [0] * 5
    assert searched(beginning, 0, 1) == [0] * 5
    assert beginning.state() == {}


def test_a_part_with_some_success_is_a_success():
    beginning = build_beginning({"name": "branch", "rounds": 2})
    beginning.hear([Begun(Visit("q", 0), 0, 32, 0.0), Begun(Visit("q", 0), 0, 32, 0.5)], last=False)
    assert lengths(beginning, 32, 2) == [0, 0]
    assert lengths(beginning, 32, 2, question="another") == [0, 0]


@pytest.mark.parametrize("name", ["branch", "hint"])
def test_a_question_that_is_asked_twice_in_a_round_is_tried_twice(name):
    beginning = build_beginning({"name": name, "rounds": 3})
    alone = build_beginning({"name": name, "rounds": 3})
    for one in (beginning, alone):
        one.hear([Begun(Visit("q", 3), 8, 32, 0.0)], last=False)
    beginning.hear([Begun(Visit("q", 7), 0, 32, 1.0)], last=False)
    assert lengths(beginning, 32, 2, place=3) == lengths(alone, 32, 2, place=3)
    assert lengths(beginning, 32, 2, place=7) != lengths(alone, 32, 2, place=3)


def test_the_last_rate_is_that_of_the_later_visit_in_whatever_order_ranks_tell():
    found = [Begun(Visit("q", 3), 5, 10, 0.5), Begun(Visit("q", 7), 8, 10, 0.5)]
    for told in (found, found[::-1]):
        beginning = build_beginning("hint")
        beginning.hear(told, last=True)
        assert lengths(beginning, 10, 1) == [8]


def test_golden_curve_and_its_inverse():
    rates = (0, 0.25, 0.5, 0.75, 1)
    expected = (0.006693, 0.075858, 0.5, 0.924142, 0.993307)
    assert [Curve(10, -0.5, 0).accuracy(p) for p in rates] == pytest.approx(expected, abs=1e-6)
    guessed = (0.205354, 0.260687, 0.6, 0.939313, 0.994646)
    assert [Curve(10, -0.5, 0.2).accuracy(p) for p in rates] == pytest.approx(guessed, abs=1e-6)
    curves = [(10, -0.5, 0), (10, -0.5, 0.2), (50, -0.59, 0), (10, -0.5, 0.5), (5, 0.3, 0)]
    assert [Curve(*c).rate(0.5) for c in curves] == pytest.approx([0.5, 0.448917, 0.59, 0, 0], abs=1e-6)
    assert [Curve(10, -0.5, 0).rate(a) for a in (0.25, 0.75)] == pytest.approx([0.390139, 0.609861], abs=1e-6)


def test_golden_fits():
    points = [(0.75, 0.875), (0.5, 0.625), (0.0, 0.0), (1.0, 1.0)]
    found = fit(points)
    assert (found.slope, found.ability, found.guessing) == pytest.approx((7.489, -0.4410, 0), abs=2e-3)
    assert found.rate(0.5) == pytest.approx(0.4410, abs=1e-3)
    assert sum((found.accuracy(p) - a) ** 2 for p, a in points) == pytest.approx(0.002976, abs=1e-5)
    more = fit([*points, (0.4, 0.375)])
    assert (more.slope, more.ability, more.rate(0.5)) == pytest.approx((8.091, -0.4538, 0.4538), abs=2e-3)
    assert sum((more.accuracy(p) - a) ** 2 for p, a in [*points, (0.4, 0.375)]) == pytest.approx(0.003868, abs=1e-5)
    middle = Curve(10, -0.5, 0)
    assert sum((middle.accuracy(p) - p) ** 2 for p in (0, 0.5, 1)) == pytest.approx(8.958851e-5, rel=1e-6)
    loose = fit([(0.75, 0.875), (0.0, 0.0), (1.0, 1.0)])
    assert loose.accuracy(0.75) == pytest.approx(0.875, abs=0.02)
    assert 0.6 < loose.rate(0.5) < 0.75


def test_anchors_stand_where_nothing_was_tried():
    assert with_anchors([(0.75, 0.875)]) == [(0.75, 0.875), (0.0, 0.0), (1.0, 1.0)]
    assert with_anchors([(1.0, 0.9)]) == [(1.0, 0.9), (0.0, 0.0)]
    assert with_anchors([(0.0, 0.2), (1.0, 0.9)]) == [(0.0, 0.2), (1.0, 0.9)]


def test_hints_find_the_length_at_which_half_of_the_answers_are_right():
    truth = Curve(20, -0.4, 0)
    beginning = build_beginning({"name": "hint", "rounds": 4})
    for visit in range(3):
        rates = []
        for part in range(4):
            (given, *others) = lengths(beginning, 50, 4)
            assert others == [given] * 3
            rates.append(given / 50)
            beginning.hear([Begun(Visit("q", 0), given, 50, truth.accuracy(given / 50))], last=part == 3)
        if visit == 0:
            assert rates[0] == 0.98  # nearly the whole solution
    assert rates[-1] == pytest.approx(0.4, abs=0.04)
    assert abs(truth.accuracy(rates[-1]) - 0.5) < 0.2


def test_the_last_rate_of_a_question_survives():
    beginning = build_beginning("hint")
    beginning.hear([Begun(Visit("q", 0), 5, 10, 0.5), Begun(Visit("p", 0), 0, 0, 1.0)], last=True)
    other = build_beginning("hint")
    other.restore(beginning.state())
    assert lengths(other, 10, 2) == [5, 5]
    assert lengths(other, 10, 2, question="new") == [9, 9]
    assert lengths(other, 1, 2, question="short") == [0, 0]


def test_answers_that_do_not_fit_the_rounds_are_refused():
    check_rounds(build_beginning("hint"), 8)
    with pytest.raises(UserError, match="n 6 must be a multiple of the 4 rounds"):
        check_rounds(build_beginning("hint"), 6)
