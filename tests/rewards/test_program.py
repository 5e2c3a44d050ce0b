import numpy as np
import pytest

from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.rewards import Attempt
from posttrain.rewards.program import Execution, execute_program, program, program_text, score_program, verify_program

RETURNS = "def solution():\n    return {}\n"


def question(answer="18"):
    return Sample((user("How many?"),), answer=answer)


def attempt(text, answer="18"):
    return Attempt(question(answer), text, np.zeros(4, np.int32), np.zeros(4, np.float32), "stop")


@pytest.mark.parametrize(
    ("returned", "value"),
    [("18", 1), ("18.009", 1), ("18.01", 1), ("17.99", 1), ("18.02", 0.1), ("'18'", 1), ("True", 0.1), ("None", 0),
     ("[18]", 0), ("float('nan')", 0), ("10**400", 0), ("1/0", 0), ("x", 0)],
)  # fmt: skip
def test_a_number_near_the_right_one_is_right_and_another_number_is_worth_a_little(returned, value):
    (score,) = program([attempt(RETURNS.format(returned))], 0.0, partial=0.1)
    assert score.value == value
    assert score.parts == {"correct": float(value == 1), "format": float(value > 0)}


def test_golden_numbers_of_the_sheet():
    scores = [score_program(question(), Execution(value), partial=0.1).value for value in (18.009, 18.02, None)]
    assert scores == [1, 0.1, 0]
    assert score_program(question("1,000"), Execution(1000.0)).value == 1


def test_the_cause_is_kept():
    score = verify_program(question(), "def solution():\n    return 1 / 0")
    assert score.info == {"reason": "error", "cause": "ZeroDivisionError: division by zero (line 2)"}
    assert execute_program("x = 1").cause == "NameError: name 'solution' is not defined"
    assert execute_program("while True: pass", time_limit=0.2).failure == "time"


def test_a_sample_without_a_number_is_an_error_and_not_a_wrong_answer():
    assert "no number" in verify_program(question("blue"), RETURNS.format(18)).error
    assert verify_program(question(None), RETURNS.format(18)).error is not None


def test_a_program_that_could_not_be_run_is_an_error_and_not_a_wrong_answer():
    score = score_program(question(), Execution(None, "broken", "the process broke down"), partial=0.1)
    assert (score.error, score.parts) == ("the process broke down", {})


def test_all_attempts_are_scored_in_their_order():
    scores = program([attempt(RETURNS.format(n)) for n in (18, 3, 18)], 0.0)
    assert [score.value for score in scores] == [1, 0, 1]
    assert [score.info["extracted"] for score in scores] == ["18", "3", "18"]


BODY = "    a = 3\n    return a * 6"
HEADER = 'def solution():\n    """How many?"""'


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        f"\n{BODY}",
        f"{BODY}\n```",
        f"{BODY}\n```\nThe answer is 18.",
        f"{BODY}\n```\n\n```output\n18\n```",
        f"def solution():\n{BODY}",
        f"```python\ndef solution():\n{BODY}\n```",
        f"Here it is:\n```python\ndef solution():\n{BODY}\n```\nDone.",
        f"<think>```\nfirst\n```</think>```\ndef solution():\n{BODY}",
        f"import math\n\ndef solution():\n{BODY}",
    ],
)
def test_a_program_goes_on_from_the_header_of_the_prompt_or_brings_its_own(text):
    assert execute_program(program_text(text, header=HEADER)).value == 18


def test_without_a_header_the_last_fence_counts():
    text = "```python\ndef solution(): return 1\n```\nNo, rather\n```python\ndef solution(): return 2\n```"
    assert execute_program(program_text(text)).value == 2


def test_another_function_may_be_asked_for():
    assert execute_program("def f(): return 2", function="f").value == 2
    with pytest.raises(UserError, match="no name of a Python function"):
        execute_program("def f(): return 2", function="f(); g")
