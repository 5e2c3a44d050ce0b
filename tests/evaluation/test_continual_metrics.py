"""The numbers of a sequence of tasks, against sheet 19's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluation.continual import continual_metrics, forgetting_by_problem

MATRIX = [[0.8], [0.6, 0.7], [0.5, 0.65, 0.9]]


def test_the_sheets_matrix_has_the_sheets_numbers() -> None:
    found = continual_metrics(MATRIX)
    assert found["average_accuracy"] == pytest.approx(0.683333, abs=1e-6)
    assert found["forgetting"] == pytest.approx(-0.175)
    assert found["learned_accuracy"] == pytest.approx(0.8)


def test_the_best_earlier_value_may_be_a_later_stages() -> None:
    assert continual_metrics(MATRIX)["forgetting_from_best"] == pytest.approx(-0.175)  # nothing ever rose
    risen = [[0.8], [0.9, 0.7], [0.5, 0.65, 0.9]]
    assert continual_metrics(risen)["forgetting"] == pytest.approx(-0.175)
    assert continual_metrics(risen)["forgetting_from_best"] == pytest.approx(((0.5 - 0.9) + (0.65 - 0.7)) / 2)


def test_one_task_has_nothing_to_forget() -> None:
    assert continual_metrics([[0.4]]) == {"average_accuracy": 0.4, "learned_accuracy": 0.4}


def test_what_later_stages_teach_of_earlier_tasks_is_positive() -> None:
    assert continual_metrics([[0.4], [0.6, 0.5]])["forgetting"] == pytest.approx(0.2)


@pytest.mark.parametrize("matrix", [[], [[]], [[0.1, 0.2]], [[0.1], [0.2]], [[0.1], [0.2, 0.3, 0.4]]])
def test_another_shape_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="rows of 1, 2, 3"):
        continual_metrics(matrix)


shares = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=6)


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=4))
def test_the_mean_over_problems_is_the_forgetting_whatever_the_sizes_of_tasks(
    pairs: list[tuple[list[float], list[float]]],
) -> None:
    pairs = [(own[: len(last)], last[: len(own)]) for own, last in pairs]
    own, last = (
        {str(t): {str(p): x for p, x in enumerate(pair[side])} for t, pair in enumerate(pairs)} for side in (0, 1)
    )
    change = np.mean([np.mean(after) - np.mean(before) for before, after in pairs])
    assert np.mean(list(forgetting_by_problem(own, last).values())) == pytest.approx(change)


def test_a_problem_that_only_one_evaluation_has_scored_is_left_out() -> None:
    found = forgetting_by_problem({"sort": {"a": 1.0, "b": 1.0}}, {"sort": {"a": 0.0, "c": 1.0}})
    assert found == {"sort/a": -1.0}


def test_a_task_without_a_problem_in_common_does_not_dilute_the_others() -> None:
    own = {"sort": {"a": 1.0}, "count": {"b": 1.0}}
    assert forgetting_by_problem(own, {"sort": {"a": 0.5}, "count": {"z": 1.0}}) == {"sort/a": -0.5}
    assert forgetting_by_problem(own, {"sort": {}, "count": {}}) == {}
