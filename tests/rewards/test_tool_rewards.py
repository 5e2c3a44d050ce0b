"""Numbers from the sheets of papers 50 (ToolRL) and 31 (TL-Training)."""

from collections.abc import Sequence as List
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.advantages import Outcomes, group_normalised
from posttrain.data import Sample, assistant, user
from posttrain.rewards import Attempt, Score
from posttrain.rewards.tool_calls import ToolCall, tagged
from posttrain.rewards.tool_rewards import call_errors, call_points, thought_length, toolrl, toolrl_format
from posttrain.tasks.toolrl import ToolRL

WEATHER = ToolCall("get_weather", {"city": "Paris", "unit": "C"})
REPLY = "<response> No tool is needed. </response>"


def call(**arguments: Any) -> ToolCall:
    return ToolCall("f", arguments)


def attempt(text: str, gold: str | None, **meta: Any) -> Attempt:
    return Attempt(
        sample=Sample(prompt=(user("Go."),), response=(assistant(gold or ""),), answer=gold, meta=meta),
        text=text,
        tokens=np.zeros(1, np.int32),
        logprobs=np.zeros(1, np.float32),
        finish_reason="stop",
    )


def calling(calls: List[ToolCall]) -> str:
    return f"<think> Well. </think>\n{tagged(calls)}"


def score(text: str, gold: str, progress: float = 0.0, **options: Any) -> Score:
    (found,) = toolrl([attempt(text, gold)], progress, **options)
    assert found.error is None
    return found


def correctness(predicted: List[ToolCall], gold: List[ToolCall], **options: Any) -> float:
    found = score(calling(predicted), tagged(gold), **options)
    assert found.value == pytest.approx(sum(found.parts.values()))
    return found.parts["correctness"]


@pytest.mark.parametrize(
    ("predicted", "original", "finegrained", "intermediate", "coarse"),
    [
        ([WEATHER], 3, 3, 3, 3),
        ([ToolCall("get_weather", {"city": "Paris", "unit": "F"})], 1.5, 1.5, 0, -3),
        ([ToolCall("get_weather", {"city": "Paris"})], 0.75, 0, 0, -3),
        ([ToolCall("get_weather", {"city": "Paris", "unit": "C", "lang": "fr"})], 2.5, 1.5, 0, -3),
        ([ToolCall("other", {"city": "Paris", "unit": "C"})], -3, -3, -3, -3),
        ([WEATHER, ToolCall("other", {})], 2.25, 1.5, 1.5, -3),
        ([], -3, -3, -3, -3),
    ],
)
def test_granularities_are_those_of_the_sheet(
    predicted: list[ToolCall], original: float, finegrained: float, intermediate: float, coarse: float
) -> None:
    found = [
        correctness(predicted, [WEATHER], granularity=name)
        for name in ("original", "finegrained", "intermediate", "coarse")
    ]
    assert found == pytest.approx([original, finegrained, intermediate, coarse])


def test_an_equal_maximum_is_a_third_of_the_range() -> None:
    predicted = [WEATHER], [ToolCall("get_weather", {"city": "Paris", "unit": "F"})], [call()]
    found = [correctness(calls, [WEATHER], scale="equal_max") for calls in predicted]
    assert found == pytest.approx([1, 0.5, -1])
    missing = [ToolCall("get_weather", {"city": "Paris"})]
    assert correctness(missing, [WEATHER], scale="equal_max") == pytest.approx(0.25)


def test_swapped_calls_are_right_but_for_coarse() -> None:
    gold = [call(x=1), call(x=2)]
    names = ("original", "finegrained", "intermediate", "coarse")
    assert [correctness(gold[::-1], gold, granularity=name) for name in names] == [3, 3, 3, -3]


def test_optimal_matching_earns_more_than_greedy() -> None:
    gold, predicted = [call(b=1), call(a=1)], [call(a=1, b=1), call(b=0)]
    assert correctness(predicted, gold, greedy=True) == pytest.approx(0.0)
    assert correctness(predicted, gold) == pytest.approx(1.2)


def test_a_right_call_twice_earns_no_more_than_once() -> None:
    assert correctness([WEATHER, WEATHER], [WEATHER]) == pytest.approx(6 * 3.5 / 4 - 3)


def test_without_arguments_a_call_earns_the_point_for_their_names() -> None:
    assert correctness([call(x=1)], [call()]) == pytest.approx(6 * 1 / 2 - 3)
    assert correctness([call(), call()], [call()], granularity="finegrained") == pytest.approx(6 * 1 / 2 - 3)


def test_gold_replies_only_ask_for_the_form() -> None:
    assert score(f"<think>x</think>\n{REPLY}", REPLY).value == 1
    assert score(f"<think>x</think>\n{tagged([WEATHER])}", REPLY).value == 0


def test_the_newline_behind_the_thoughts_is_worth_a_point() -> None:
    gold = tagged([WEATHER])
    assert score(f"<think>x</think>\n{gold}", gold).value == 4
    assert score(f"<think>x</think> {gold}", gold).parts == {"format": 0, "correctness": 3}
    assert score(f"<think>x</think>\n{REPLY}", gold).value == -3
    assert score("<think>x</think>\n<tool_call>\nget_weather()\n</tool_call>", gold).value == -2


@pytest.mark.parametrize(
    ("text", "calls", "reply", "right"),
    [
        ("<think>a\nb</think>\n<tool_call>\nx\n</tool_call>", True, False, 1),
        ("  <think></think>\n<tool_call>\nx\ny\n</tool_call>\n", True, False, 1),
        ("<think>a</think>\n<tool_call>x</tool_call>", True, False, 0),
        ("So: <think>a</think>\n<tool_call>\nx\n</tool_call>", True, False, 0),
        ("<think>a</think>\n<tool_call>\nx\n</tool_call> done", True, False, 0),
        ("<think>a</think>\n<tool_call>\nx\n</tool_call>\n<tool_call>\nx\n</tool_call>", True, False, 0),
        ("<think>a</think><think>b</think>\n<tool_call>\nx\n</tool_call>", True, False, 0),
        ("<think>a</think>\n<response>x</response>", False, True, 1),
        ("<think>a</think>\n<response>x", False, True, 0),
        ("<think>a</think>\n<tool_call>\nx\n</tool_call>\n<response>x</response>", True, True, 1),
        ("<think>a</think>\n<response>x</response>\n<tool_call>\nx\n</tool_call>", True, True, 0),
        ("<think>a</think>", False, False, 1),
        ("a", False, False, 0),
    ],
)
def test_the_form_is_that_of_the_gold(text: str, calls: bool, reply: bool, right: float) -> None:
    assert toolrl_format(text, calls=calls, reply=reply) == right


@pytest.mark.parametrize(
    "text",
    ["", "{", "<tool_call>", "<tool_call>\n" + "[" * 100_000 + "\n</tool_call>", '{"name": "get_weather"}', "\ud800"]
    + [f"<tool_call>\n{body}\n</tool_call>" for body in ("7", "null", '{"name": "f"}', '{"a": ' + "1" * 5000 + "}")],
)
def test_what_cannot_be_read_is_worth_the_least_and_aborts_nothing(text: str) -> None:
    assert score(text, tagged([WEATHER])).parts == {"format": 0, "correctness": -3}
    assert call_errors(attempt(text, tagged([WEATHER]), tools={"get_weather": ["city"]})).value <= -0.5


@pytest.mark.parametrize(
    ("scale", "progress", "lowest", "highest"),
    [
        ("original", 0.5, (0, -3), (1, 3)),
        ("equal_max", 0.5, (0, -1), (1, 1)),
        ("two_stage", 29 / 105, (0, -1), (1, 1)),
        ("two_stage", 30 / 105, (0, -3), (0.5, 3)),
        ("dynamic", 0.0, (-2, -2), (2, 2)),
        ("dynamic", 0.5, (-1.5, -2.5), (1.5, 2.5)),
        ("dynamic", 1.0, (-1, -3), (1, 3)),
    ],
)
def test_scales_over_time_are_those_of_the_sheet(
    scale: str, progress: float, lowest: tuple[float, float], highest: tuple[float, float]
) -> None:
    for text, ends in (("nothing", lowest), (calling([WEATHER]), highest)):
        parts = score(text, tagged([WEATHER]), progress, scale=scale).parts
        assert (parts["format"], parts["correctness"]) == pytest.approx(ends)


def test_a_bonus_of_length_counts_words_of_thought() -> None:
    def bonus(words: int, progress: float = 0.0, **options: Any) -> float:
        return thought_length([attempt(f"<think> {'so ' * words}</think> a b c", None)], progress, **options)[0]

    assert bonus(256) == 0.5
    assert bonus(700) == 1.0
    assert bonus(512, 0.5, growth=1.0) == pytest.approx(512 / 768)
    code = {"target": 384, "growth": 2 / 3}
    assert [bonus(256, progress, **code) for progress in (0.0, 1.0)] == pytest.approx([0.67, 0.40], abs=5e-3)
    assert thought_length([attempt("so so so", None)], 0.0) == [0.0]


def test_advantages_of_a_group_are_those_of_the_sheet() -> None:
    def advantages(rewards: list[float], std: Any) -> list[float]:
        group, lengths = np.zeros(len(rewards), np.int64), np.ones(len(rewards), np.int64)
        found = group_normalised(Outcomes(np.array(rewards), group, lengths), std=std)
        return [float(values[0]) for values in found["advantage"]]

    four = [4.0, 1.6, -3.0, -3.0]
    assert advantages(four, "population") == pytest.approx([1.3569, 0.5626, -0.9598, -0.9598], abs=1e-4)
    assert advantages(four, "sample") == pytest.approx([1.1751, 0.4872, -0.8312, -0.8312], abs=1e-4)
    assert advantages([1, 1, 1], "population") == [0, 0, 0]
    assert advantages([1, 0], "population") == pytest.approx([1, -1], abs=1e-4)
    assert advantages([1, 0], "sample") == pytest.approx([0.7071, -0.7071], abs=1e-4)


calls = st.lists(
    st.builds(ToolCall, st.sampled_from("fgh"), st.dictionaries(st.sampled_from("abc"), st.integers(0, 2))), max_size=4
)
granularities = st.sampled_from(["original", "finegrained", "intermediate", "coarse"])


@given(calls.filter(bool), calls, granularities, st.booleans())
def test_points_are_a_share_and_whole_only_where_every_call_is_right(
    gold: list[ToolCall], predicted: list[ToolCall], granularity: Any, greedy: bool
) -> None:
    def contents(found: list[ToolCall]) -> list[str]:
        return sorted(f"{one.name} {sorted(one.arguments.items())}" for one in found)

    points = call_points(gold, predicted, granularity, greedy=greedy)
    assert 0 <= points <= 1
    assert points < 1 or contents(gold) == contents(predicted)
    assert call_points(gold, gold, granularity, greedy=greedy) == 1


@given(calls.filter(bool), calls, st.randoms(use_true_random=False), st.sampled_from(["original", "intermediate"]))
def test_points_of_unequal_lists_know_no_order(
    gold: list[ToolCall], predicted: list[ToolCall], rng: Any, granularity: Any
) -> None:
    shuffled = rng.sample(predicted, len(predicted))
    assert call_points(gold, shuffled, granularity) == pytest.approx(call_points(gold, predicted, granularity))
    assert call_points(gold, predicted) >= call_points(gold, predicted, greedy=True) - 1e-12


@given(st.text(), calls, st.floats(0, 1), st.sampled_from(["original", "equal_max", "two_stage", "dynamic"]))
def test_any_text_has_a_reward_within_its_range(text: str, gold: list[ToolCall], progress: float, scale: Any) -> None:
    answer = tagged(gold) if gold else REPLY
    for answered in (text, calling(gold), f"<think>{text}</think>\n{tagged(gold)}"):
        found = score(answered, answer, progress, scale=scale)
        written, right = {"dynamic": (2, 3)}.get(scale, (1, 3))
        assert abs(found.parts["format"]) <= written
        assert abs(found.parts["correctness"]) <= right
        assert scale != "original" or -3 <= found.value <= 4


def test_an_answer_is_needed_to_compare_with() -> None:
    assert "answer" in str(toolrl([attempt("x", None)], 0.0)[0].error)
    assert "tools" in str(call_errors(attempt("x", tagged([WEATHER]))).error)
    assert "one call" in str(call_errors(attempt("x", tagged([WEATHER] * 2), tools={})).error)


SEARCH = ToolCall("search", {"query": "tool learning", "venue": "ICLR"})
TOOLS = {"search": ["query", "venue", "limit"], "finish": ["answer"]}


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("search(", -2, "format"),
        (tagged([]), -2, "format"),
        (tagged([SEARCH, SEARCH]), -2, "format"),
        (tagged([ToolCall("srch", {})]), -2, "tool_hallucination"),
        (tagged([ToolCall("finish", {"answer": "x"})]), -1.5, "wrong_tool"),
        (
            tagged([ToolCall("search", {"keyword": "x", "venue": "x", "limit": 1})]),
            -1.8,
            "hallucinated_redundant_missing",
        ),
        (tagged([ToolCall("search", {"query": "learning", "venue": "ICLR"})]), -0.25, "value"),
        (tagged([SEARCH]), 1, "none"),
    ],
)
def test_errors_have_the_rewards_of_the_table(text: str, value: float, reason: str) -> None:
    found = call_errors(attempt(text, tagged([SEARCH]), tools=TOOLS))
    assert (found.value, found.info["reason"], found.error) == (value, reason, None)
    assert [name for name, share in found.parts.items() if share] == [reason]


def test_every_gold_answer_of_toolrl_earns_the_most(shared_data: Path) -> None:
    """Behind thoughts of our own: those of the files name the tags now and then, which costs the point for the form."""
    for name, count in (("rlla_sft.json", 400), ("test.parquet", 80)):
        samples = ToolRL(path=str(shared_data / "toolrl" / name)).samples(1000, 0)
        assert len(samples) == count
        for sample in samples:
            written = f"<think> So. </think>\n{sample.answer}"
            (found,) = toolrl([replace(attempt(written, sample.answer), sample=sample)], 0.0)
            assert found.value == (4 if sample.meta["steps"] else 1), written
