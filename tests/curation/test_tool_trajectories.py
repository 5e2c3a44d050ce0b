"""Masking of adverse data (sheet 31): failed calls are context, never targets."""

from typing import Any

import pytest

from posttrain.curation import curations
from posttrain.data import Sample, assistant, user

TYPE_ERROR = "TypeError: f() got an unexpected keyword argument 'x'"


def tool(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


def trajectory(*feedback: dict[str, Any]) -> Sample:
    turns: list[dict[str, Any]] = []
    for number, said in enumerate(feedback):
        turns += [assistant(f"call {number}"), said]
    return Sample(prompt=(user("question"),), response=(*turns, assistant("finish")), answer="42", task="tool_calls")


def learned(sample: Sample, **options: Any) -> list[str]:
    return [kept.response_text for kept in curations["failed_calls"]([sample], 0, **options)]


def test_a_failed_call_is_no_target_but_stays_in_the_context() -> None:
    sample = trajectory(tool(TYPE_ERROR), tool("57"))
    kept = curations["failed_calls"]([sample], 0)
    assert [one.response_text for one in kept] == ["call 1", "finish"]
    assert kept[0].prompt == (user("question"), assistant("call 0"), tool(TYPE_ERROR))
    assert kept[1].prompt == (*kept[0].prompt, assistant("call 1"), tool("57"))
    assert {(one.answer, one.task) for one in kept} == {("42", "tool_calls")}


def test_the_same_samples_with_the_failed_ones_among_them() -> None:
    assert learned(trajectory(tool(TYPE_ERROR), tool("57")), keep_failed=True) == ["call 0", "call 1", "finish"]


@pytest.mark.parametrize(
    "said",
    [
        "NameError: name 'foo' is not defined",
        "f() missing 1 required positional argument: 'x'",
        '{"error": "bad key"}',
        "{'error': 'bad key'}",
        '{"ERROR" : 404}',
        "Connection error.",
        "400 Client Error: Bad Request",
    ],
)
def test_markers_of_failure_are_found_however_they_are_spelled(said: str) -> None:
    assert learned(trajectory(tool(said))) == ["finish"]


@pytest.mark.parametrize("said", ["no errors", "terrorism", '{"error": "", "response": 3}', "{'error': ''}", "57", ""])
def test_letters_of_a_marker_inside_other_words_are_no_failure(said: str) -> None:
    assert learned(trajectory(tool(said))) == ["call 0", "finish"]


def test_the_flag_of_the_environment_goes_before_markers() -> None:
    assert learned(trajectory(tool("ok", is_error=True), tool(TYPE_ERROR, is_error=False))) == ["call 1", "finish"]


def test_one_failed_feedback_of_several_leaves_the_turn_out() -> None:
    sample = Sample(prompt=(user("q"),), response=(assistant("two calls"), tool("1"), tool(TYPE_ERROR), assistant("b")))
    assert learned(sample) == ["b"]


def test_a_turn_without_feedback_is_left_out_unless_it_is_the_last() -> None:
    sample = Sample(prompt=(user("q"),), response=(assistant("a"), user("go on"), assistant("b"), tool(TYPE_ERROR)))
    assert learned(sample) == ["b"]


def test_own_markers_replace_the_others() -> None:
    assert learned(trajectory(tool(TYPE_ERROR), tool("oops")), markers=["Oops!"]) == ["call 0", "finish"]
