import pytest

from posttrain.curation import curate
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError

SAMPLE = Sample((user("2+3?"),), (assistant("It is {5}."),), answer="5", task="t", meta={"style": "steps"})
GOOD, BAD = (
    Sample((user("q"),), (assistant(f"<EXPLORATION>1. add\n2. double</EXPLORATION><EXECUTION>{execution}"),))
    for execution in ("1. add\n5\n2. double\n10", "1. add\n5")
)


def test_questions_and_answers_become_new_questions_and_remember_the_old() -> None:
    note = {"question": "{prompt}", "solution": "{response}"}
    spec = {"name": "compose", "prompt": "{prompt}\n{response}\nSummarise ({style}).", "response": "", "note": note}
    (asked,) = curate(spec, [SAMPLE], 0, {})
    assert asked.prompt_text == "2+3?\nIt is {5}.\nSummarise (steps)."
    assert asked.response == ()
    assert (asked.answer, asked.task) == ("5", "t")
    assert asked.meta == {"style": "steps", "question": "2+3?", "solution": "It is {5}."}
    (back,) = curate({"name": "compose", "prompt": "{question}", "response": "{solution}"}, [asked], 0, {})
    assert (back.prompt, back.response) == (SAMPLE.prompt, SAMPLE.response)


def test_a_name_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"has no 'qestion'.*question"):
        curate({"name": "compose", "prompt": "{qestion}"}, [Sample((user("q"),), meta={"question": "q"})], 0, {})


def test_executions_that_leave_their_plan_are_left_out() -> None:
    assert curate("adherent", [GOOD, BAD], 0, {}) == [GOOD]
    assert curate({"name": "adherent", "at_least": 0.5}, [GOOD, BAD], 0, {}) == [GOOD, BAD]
    assert curate("adherent", [SAMPLE], 0, {}) == []


def test_a_response_ends_behind_the_mark() -> None:
    (cut,) = curate({"name": "cut_behind", "mark": "<EXECUTION>"}, [BAD], 0, {})
    assert cut.response_text == "<EXPLORATION>1. add\n2. double</EXPLORATION><EXECUTION>"
    with pytest.raises(UserError, match="no mark '<E>'"):
        curate({"name": "cut_behind", "mark": "<E>"}, [BAD], 0, {})
