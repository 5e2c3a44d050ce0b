import numpy as np
import pytest

from posttrain.data import Sample, user
from posttrain.rewards import Attempt, Moment, Score, build_reward
from posttrain.tasks.answers import verify_number


def scored(text, answer="18", spec="partial_credit", verify=verify_number):
    sample = Sample((user("How many?"),), answer=answer)
    nothing = np.zeros(0, np.float32)
    attempt = Attempt(sample, text, nothing.astype(np.int32), nothing, "stop", verify)
    return build_reward(spec)([[attempt]], Moment())[0][0]


@pytest.mark.parametrize(
    ("text", "value"), [("<answer>18</answer>", 1), ("<answer>19</answer>", 0.1), ("I do not know", 0)]
)
def test_golden_numbers_of_the_sheet(text, value):
    assert scored(text).value == value
    assert scored(text, "1,000").value == min(value, 0.1)


def test_what_a_wrong_answer_earns_can_be_set():
    assert scored("<answer>19</answer>", spec={"name": "partial_credit", "partial": 0}).value == 0


def test_what_cannot_be_scored_is_an_error_and_no_partial_credit():
    found = scored("18", verify=lambda sample, text: Score(0.0, info={"extracted": "18"}, error="broken"))
    assert found.error == "broken"
    assert found.value == 0
