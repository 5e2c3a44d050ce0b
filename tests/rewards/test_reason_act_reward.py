"""Numbers from the sheet of paper 16 (2512.11277)."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.advantages import Outcomes, build_advantage
from posttrain.data import Sample, user
from posttrain.rewards import Attempt
from posttrain.rewards.reason_act import call_f1, equal_calls, read_turn, reason_act, same_words, word_f1
from posttrain.rewards.tool_calls import MalformedCallError, ToolCall

FLIGHT = {"from": "SFO", "to": "JFK", "date": "2025-03-01"}
QUESTION = "Which date would you like?"


def block(*calls):
    return "\n".join(["<tool_call>", *(json.dumps({"name": n, "arguments": a}) for n, a in calls), "</tool_call>"])


def thinking(action):
    return f"<think>The user wants a flight.</think>{action}"


def score(gold, text, **options):
    sample = Sample((user("A flight!"),), answer=gold)
    return reason_act(Attempt(sample, text, np.zeros(4, np.int32), np.zeros(4, np.float32), "stop"), **options)


GOLD = block(("search_flights", FLIGHT))


@pytest.mark.parametrize(
    ("text", "graded", "exact"),
    [
        (thinking(GOLD), 2, 2),
        (thinking(block(("search_flights", FLIGHT | {"date": "2025-03-02"}))), 1 + 2 / 3, 1),
        (thinking(block(("search_flights", {"from": "SFO", "to": "JFK"}))), 1.8, 1),
        (thinking(block(("book", {}))), 1, 1),
        (thinking(QUESTION), 1, 1),
        (GOLD, 0, 0),
        ("<think> \n</think>" + GOLD, 0, 0),
    ],
)
def test_the_sheets_values_of_a_turn_that_calls_a_tool(text, graded, exact):
    assert score(GOLD, text).value == pytest.approx(graded)
    assert score(GOLD, text, tools="exact").value == exact


def test_the_sheets_values_of_two_calls():
    first, second = ("search_flights", FLIGHT), ("search_hotels", {"city": "New York"})
    gold = block(first, second)
    for mode in ("graded", "exact"):
        assert score(gold, thinking(block(second, first)), tools=mode).value == 2
    assert score(gold, thinking(block(first))).value == pytest.approx(1 + 2 / 3)
    assert score(gold, thinking(block(first, second, ("book", {})))).value == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("text", "graded", "exact"),
    [
        (thinking("which DATE would you like"), 2, 2),
        (thinking("Which date?"), 1 + 4 / 7, 1),
        (thinking(GOLD), 1, 1),
        (QUESTION, 0, 0),
    ],
)
def test_the_sheets_values_of_a_turn_that_answers(text, graded, exact):
    assert score(QUESTION, text).value == pytest.approx(graded)
    assert score(QUESTION, text, answers="exact").value == exact


def test_an_answer_may_be_compared_by_its_number():
    assert score("In 12 days.", thinking("It is day 7: 12.0"), answers="number").value == 2
    assert score("In 12 days.", thinking("In 13 days."), answers="number").value == 1
    assert score("Never.", thinking("Never."), answers="number").value == 1


def test_the_sheets_advantages_of_a_group():
    rewards = np.array([2, 1.6667, 1, 0, 1, 1])
    outcomes = Outcomes(rewards, np.array([0, 0, 0, 0, 1, 1]), np.ones(6, np.int64))
    columns = build_advantage({"name": "group", "std": "population", "eps": 1e-4})(outcomes)
    found = [float(values[0]) for values in columns["advantage"]]
    assert found == pytest.approx([1.0909, 0.6546, -0.2182, -1.5273, 0, 0], abs=2e-4)


def test_without_weights_of_the_action_every_turn_that_reads_is_worth_the_same():
    options = {"tool_weight": 0.0, "answer_weight": 0.0}
    texts = [thinking(GOLD), thinking(QUESTION), thinking(block(("book", {})))]
    assert [score(gold, text, **options).value for gold in (GOLD, QUESTION) for text in texts] == [1.0] * 6
    assert score(GOLD, thinking("Which date?"), format_weight=0.5).value == 0.5
    assert score(GOLD, thinking(GOLD), tool_weight=3.0).value == 4.0


def test_thoughts_are_not_scored_but_must_be_there():
    for thought in ("x", "Which date would you like?", "It is\n2 * 3 = 6."):
        assert score(QUESTION, f"<think>{thought}</think>\n{QUESTION}").value == 2
    parts = score(GOLD, thinking(block(("book", {})))).parts
    assert parts == {"format": 1.0, "tool": 0.0}
    assert score(QUESTION, thinking("Which date?")).parts == pytest.approx({"format": 1.0, "answer": 4 / 7})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think>a</think>",
        "<think>a</think> <think>b</think>c",
        "<think>a<think>b</think>c",
        "<think>a",
        f"<think>a</think>Sure: {GOLD}",
        f"<think>a</think>{GOLD}{GOLD}",
        f"<think>a</think>{GOLD} There.",
        "<think>a</think><tool_call>\n</tool_call>",
        "<think>a</think><tool_call>{name: b}</tool_call>",
        "<think>a</think><tool_call>[]</tool_call>",
        f"Now <think>a</think>{GOLD}",
    ],
)
def test_anything_else_is_no_turn(text):
    with pytest.raises(MalformedCallError):
        read_turn(text)
    assert score(GOLD, text).value == score(QUESTION, text).value == 0


def test_types_of_values_count_and_so_does_every_repetition():
    calls = [ToolCall("f", {"a": 2}), ToolCall("f", {"a": 2})]
    assert call_f1(calls, [ToolCall("f", {"a": "2"}), ToolCall("f", {"a": 2})]) == 0.5
    assert equal_calls(calls, calls)
    assert not equal_calls(calls, calls[:1])
    assert not equal_calls(calls, [calls[0], ToolCall("f", {"a": 3})])
    assert call_f1([ToolCall("f", {})], [ToolCall("f", {})]) == 1


def test_words_of_other_alphabets_count_and_no_words_equal_no_words():
    assert word_f1("Où ?", "où") == 1
    assert word_f1("?", "!") == 1
    assert word_f1("?", "where") == 0
    assert not same_words("a b", "b a")


few_calls = st.lists(
    st.builds(ToolCall, st.sampled_from("fgh"), st.dictionaries(st.sampled_from("ab"), st.integers(0, 2))),
    min_size=1,
    max_size=4,
)


@given(few_calls, few_calls, st.randoms())
def test_the_score_of_calls_is_a_share_that_only_equal_calls_reach(gold, predicted, rng):
    share = call_f1(gold, predicted)
    assert 0 <= share <= 1 + 1e-12
    assert (share > 1 - 1e-9) == equal_calls(gold, predicted)
    assert call_f1(gold, rng.sample(gold, len(gold))) == pytest.approx(1)


def test_without_a_right_action_there_is_no_score():
    assert "answer" in score(None, thinking(GOLD)).error
