"""The regression of scores on prompts and responses; advantages and pass@k with the numbers of sheet 35."""

import numpy as np
import pytest

from posttrain.advantages import Outcomes, build_advantage
from posttrain.errors import UserError
from posttrain.evaluation.metrics import pass_at_k
from posttrain.evaluation.scaling import fit_scaling


def test_golden_regression() -> None:
    fit = fit_scaling([1024, 2048, 4096, 8192], [1, 2, 1, 2], [10, 14, 16, 20])
    assert (fit.prompts, fit.responses, fit.constant) == pytest.approx((3.354102, 0.5, 15), abs=1e-6)
    assert fit.r_squared == pytest.approx(1)


def test_what_is_not_explained_lowers_the_share() -> None:
    assert fit_scaling([1, 2, 4, 8], [1, 2, 1, 2], [0, 1, 1, 0]).r_squared < 0.9
    assert fit_scaling([1, 2, 4], [1, 2, 1], [3, 3, 3]).r_squared == 1


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [([1, 2], [1, 2], "3 data sets"), ([1, 2, 4], [1, 1, 1], "both differ"), ([1, 2, 4], [1, 2], "3 data sets")],
)
def test_too_little_to_tell_is_refused(prompts: list[int], responses: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_scaling(prompts, responses, np.arange(float(len(prompts))))


def advantages(scores: list[float], **options: object) -> list[float]:
    count = len(scores)
    outcomes = Outcomes(np.array(scores), np.zeros(count, np.int64), np.ones(count, np.int64))
    return [float(a[0]) for a in build_advantage({"name": "group", **options})(outcomes)["advantage"]]


def test_golden_advantages() -> None:
    assert advantages([1, 0, 0, 1]) == pytest.approx([0.866024, -0.866024, -0.866024, 0.866024], abs=1e-6)
    assert advantages([1, 0, 0, 1], std="population", eps=0) == pytest.approx([1, -1, -1, 1])
    assert advantages([1, 0, 0, 0]) == pytest.approx([1.499997, *[-0.499999] * 3], abs=1e-6)
    assert advantages([1, 1, 1, 1]) == advantages([0, 0, 0, 0]) == [0] * 4


def test_golden_pass_at_k() -> None:
    assert pass_at_k([8, 8], [2, 0], 4) == pytest.approx([0.7857143, 0], abs=1e-6)
