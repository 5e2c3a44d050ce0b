"""Numbers from the sheets of papers 31 (TL-Training) and 50 (ToolRL)."""

import json
import re
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.tool_calls import (
    CallError,
    MalformedCallError,
    ToolCall,
    call_error,
    locate_calls,
    match_calls,
    offered_tools,
    pair_points,
    parse_calls,
    same_calls,
    same_json,
    shared_names,
    strict_calls,
    tagged,
)

WEATHER = ToolCall("get_weather", {"city": "Paris", "unit": "C"})
TOOLS = {"search": ("query", "venue", "limit"), "finish": ("answer",)}
GOLD = ToolCall("search", {"query": "tool learning", "venue": "ICLR"})


def call(**arguments: Any) -> ToolCall:
    return ToolCall("f", arguments)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
tool_calls = st.builds(ToolCall, st.text(max_size=8), st.dictionaries(st.text(), json_values, max_size=3))


@given(st.lists(tool_calls.filter(lambda c: not re.search("</|<tool", str(c))), max_size=3))  # no tags inside of tags
def test_what_is_written_is_read_back(calls: list[ToolCall]) -> None:
    text = f"<think> first </think>\n{tagged(calls)}"
    assert same_calls(parse_calls(text), calls)
    for located in locate_calls(text):
        assert json.loads(text[located.start : located.stop])["name"] == located.call.name


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "get_weather", "parameters": {"city": "Paris", "unit": "C"}}\n</tool_call>',
        '<think>x</think><tool_call>{"name": "get_weather", "arguments": {"unit": "C", "city": "Paris"}}</tool_call>',
        '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "C"}}',
        '```json\n[{"name": "get_weather", "parameters": {"city": "Paris", "unit": "C"}}]\n```',
        '{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "get_weather", '
        '"arguments": "{\\"city\\": \\"Paris\\", \\"unit\\": \\"C\\"}"}}]}',
    ],
)
def test_every_common_way_of_writing_is_read(text: str) -> None:
    assert same_calls(parse_calls(text), [WEATHER])


def test_several_calls_stand_on_lines_or_between_tags_of_their_own() -> None:
    one, two = call(a=1), call(a=2)
    lines = f"<tool_call>\n{one.to_json()}\n{two.to_json()}\n</tool_call>\n<response> done </response>"
    tags = f"<tool_call>{one.to_json()}</tool_call>\n<tool_call>{two.to_json()}</tool_call>"
    assert same_calls(parse_calls(lines), [one, two])
    assert same_calls(parse_calls(tags), [one, two])
    assert not same_calls(parse_calls(lines), [two, one])


@pytest.mark.parametrize("text", ["", "Hello.", "<think>{</think><response> {} </response>", "<think>[1]</think> no"])
def test_an_answer_without_a_call_has_none(text: str) -> None:
    assert parse_calls(text) == []


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f"}',
        '{"name": "f"}</tool_call>',
        '<tool_call><tool_call>{"name": "f"}</tool_call></tool_call>',
        "<tool_call>f(1)</tool_call>",
        '<tool_call>{"parameters": {}}</tool_call>',
        '<tool_call>{"name": "f", "parameters": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{"}</tool_call>',
        '<tool_call>{"name": "f", "parameters": {"a": 1}</tool_call>',
        "<tool_call>7</tool_call>",
        '{"name": "f"} and more',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        '<tool_call>{"name": "f", "parameters": {"a": ' + "1" * 5000 + "}}</tool_call>",
    ],
)
def test_a_call_that_cannot_be_read_is_malformed(text: str) -> None:
    with pytest.raises(MalformedCallError):
        parse_calls(text)


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "f", "arguments": {}}',
        '{"name": "f"}',
        '{"name": "f",\n"parameters": {}}',
        '[{"name": "f", "parameters": {}}]',
        '{"name": "f", "parameters": {}} {"name": "f", "parameters": {}}',
        '{"name": "f", "parameters": {}},',
        '{"name": 1, "parameters": {}}',
        "[" * 100_000,
    ],
)
def test_strictly_a_call_is_a_line_with_name_and_parameters(body: str) -> None:
    with pytest.raises(MalformedCallError):
        strict_calls(f"<tool_call>\n{body}\n</tool_call>")
    right = call(a=1).to_json()
    assert same_calls(strict_calls(f"<think>{body}</think><tool_call>{right}\n\n{right}</tool_call>"), [call(a=1)] * 2)
    assert strict_calls(right) == strict_calls(f"<tool_call>{right}") == []


def test_equality_is_typed_and_deep() -> None:
    assert not same_json(2, "2")
    assert not same_json(1, True)
    assert same_json(2, 2.0)
    assert not same_json({"a": [1, {"b": True}]}, {"a": [1, {"b": 1}]})
    assert same_json({"a": 1, "b": [None]}, {"b": [None], "a": 1})


@pytest.mark.parametrize(
    ("predicted", "points"),
    [
        (ToolCall("get_weather", {"city": "Paris", "unit": "F"}), 1 + 1),
        (ToolCall("get_weather", {"city": "Paris"}), 0.5 + 1),
        (ToolCall("get_weather", {"city": "Paris", "unit": "C", "lang": "fr"}), 2 / 3 + 2),
        (ToolCall("other", {"city": "Paris", "unit": "C"}), 0),
        (WEATHER, 3),
    ],
)
def test_points_of_a_pair_are_those_of_sheet_50(predicted: ToolCall, points: float) -> None:
    assert pair_points(WEATHER, predicted) == pytest.approx(points)


def test_a_call_without_arguments_earns_the_point_for_their_names() -> None:
    assert pair_points(call(), call()) == 1


def test_optimal_matching_beats_the_greedy_one() -> None:
    """Sheet 50: S = 2.5 greedy, 3.5 optimal, the point for the names included."""
    gold, predicted = [call(b=1), call(a=1)], [call(a=1, b=1), call(b=0)]
    greedy, optimal = match_calls(gold, predicted, greedy=True), match_calls(gold, predicted)
    assert (greedy, optimal) == ([(0, 0)], [(0, 1), (1, 0)])
    sums = [1 + sum(pair_points(gold[g], predicted[p]) for g, p in pairs) for pairs in (greedy, optimal)]
    assert sums == [2.5, 3.5]


def test_one_right_call_repeated_is_matched_once() -> None:
    assert match_calls([call(a=1)], [call(a=1)] * 3) == [(0, 0)]
    assert match_calls([], [call(a=1)]) == match_calls([call(a=1)], []) == []


few_calls = st.lists(
    st.builds(ToolCall, st.sampled_from("fgh"), st.dictionaries(st.sampled_from("ab"), st.integers(0, 2))), max_size=4
)


@given(few_calls, few_calls, st.booleans(), st.booleans())
def test_pairs_are_of_one_tool_and_one_to_one(
    gold: list[ToolCall], predicted: list[ToolCall], greedy: bool, zeros: bool
) -> None:
    pairs = match_calls(gold, predicted, greedy=greedy, zeros=zeros)
    assert all(gold[g].name == predicted[p].name for g, p in pairs)
    assert len({g for g, _ in pairs}) == len({p for _, p in pairs}) == len(pairs) <= shared_names(gold, predicted)
    assert not zeros or len(pairs) == shared_names(gold, predicted)


@given(few_calls, few_calls, st.randoms())
def test_the_optimal_sum_is_the_largest_and_knows_no_order(
    gold: list[ToolCall], predicted: list[ToolCall], rng: Random
) -> None:
    def worth(predicted: list[ToolCall], greedy: bool, zeros: bool = False) -> float:
        pairs = match_calls(gold, predicted, greedy=greedy, zeros=zeros)
        return sum(pair_points(gold[g], predicted[p]) for g, p in pairs)

    best = worth(predicted, greedy=False)
    padded = [*range(len(predicted)), *[None] * len(gold)]
    assert best == pytest.approx(
        max(
            sum(0 if p is None else pair_points(gold[g], predicted[p]) for g, p in enumerate(order))
            for order in permutations(padded, len(gold))
        )
    )
    assert best >= worth(predicted, greedy=True)
    assert best == pytest.approx(worth(rng.sample(predicted, len(predicted)), greedy=False, zeros=True))


def test_a_match_may_count_other_points_and_keep_pairs_of_zero() -> None:
    """Sheet 16: the F1 of (name, value) pairs, over the gold calls that found a partner."""

    def f1(gold: ToolCall, predicted: ToolCall) -> float:
        right = sum(same_json(predicted.arguments.get(key), value) for key, value in gold.arguments.items())
        return 2 * right / (len(gold.arguments) + len(predicted.arguments))

    gold, predicted = [call(a=1), call(a=2)], [call(a=2), call(a=3)]
    assert match_calls(gold, predicted, f1, greedy=True) == [(1, 0)]
    assert match_calls(gold, predicted, f1, zeros=True) == [(0, 1), (1, 0)]
    assert match_calls(gold, predicted, f1, greedy=True, zeros=True) == [(0, 0), (1, 1)]  # in the order of the gold


def test_shared_names_are_counted_as_often_as_both_have_them() -> None:
    f, g = ToolCall("f", {}), ToolCall("g", {})
    assert shared_names([f, f, g], [f, g, g]) == 2
    assert shared_names([f], [g]) == shared_names([], [f]) == 0


@pytest.mark.parametrize(
    ("found", "error", "reward"),
    [
        (None, CallError.FORMAT, -2),
        (ToolCall("srch", {}), CallError.TOOL_HALLUCINATION, -2),
        (ToolCall("finish", {"answer": "x"}), CallError.WRONG_TOOL, -1.5),
        (ToolCall("", {}), CallError.WRONG_TOOL, -1.5),
        ({"keyword", "venue", "limit"}, CallError.HALLUCINATED_REDUNDANT_MISSING, -1.8),
        ({"keyword", "venue"}, CallError.HALLUCINATED_AND_ANOTHER, -1.3),
        ({"query", "limit"}, CallError.REDUNDANT_MISSING, -1.0),
        ({"query", "venue", "kw"}, CallError.HALLUCINATED, -0.8),
        ({"query"}, CallError.REDUNDANT_OR_MISSING, -0.5),
        ({"query", "venue", "limit"}, CallError.REDUNDANT_OR_MISSING, -0.5),
        (ToolCall("search", {"query": "learning", "venue": "ICLR"}), CallError.VALUE, -0.25),
        (GOLD, CallError.NONE, 1),
    ],
)
def test_classes_and_rewards_are_those_of_sheet_31(found: Any, error: CallError, reward: float) -> None:
    made = ToolCall("search", {key: GOLD.arguments.get(key) for key in found}) if isinstance(found, set) else found
    assert call_error(made, GOLD, TOOLS) is error
    assert error.reward == reward


@pytest.mark.parametrize(
    "prompt",
    [
        '1. Name: get it\nDescription: x\nParameters: {}\n2. Name: put\n<obs> [{"name": "Company A"}] </obs>',
        "def get it(x)\ndef put(y)".replace("get it", "get_it"),
        'Tools: [{"type": "function", "function": {"name": "get it", "parameters": {}}}, {"name": "put"}]',
    ],
)
def test_tools_are_found_in_the_prompt(prompt: str) -> None:
    assert [name.replace("_", " ") for name in offered_tools(prompt)] == ["get it", "put"]


def test_the_real_rows_of_toolrl_can_be_read(shared_data: Path) -> None:
    rows = json.loads((shared_data / "toolrl" / "rlla_sft.json").read_text())
    called, unknown = 0, 0
    for row in rows:
        calls = parse_calls(row["output"])
        called += bool(calls)
        assert bool(calls) == ("<tool_call>" in row["output"])
        offered = offered_tools(row["instruction"])
        assert offered
        unknown += any(one.name not in offered for one in calls)
    assert called == 346
    assert unknown == 1  # row 130 calls "LastName varchar" and the like
