import json
from random import Random

import pytest

from posttrain.curation import curations
from posttrain.errors import UserError
from posttrain.rewards.tool_calls import ToolCall, offered_tools, parse_calls, tagged
from posttrain.tasks.tool_calls import PARAMETERS, Request, ToolCallsTask, refusal

CALL = ToolCall("set_price", {"item": "52804", "value": 35})
REQUEST = Request(("get_price", "set_price", "set_prize"), (CALL,), "Set the price of 52804 to 35.", None)


def score(answer: str, match: str = "call") -> tuple[float, str]:
    task = ToolCallsTask(match=match)  # type: ignore[arg-type]
    found = task.verify(task._sample(REQUEST, "in", "call"), answer)
    return found.value, found.info["reason"]


def test_a_request_is_asked_and_answered() -> None:
    task = ToolCallsTask()
    assert task.prompt(REQUEST) == (
        "def get_price(item)\ndef set_price(item, value)\ndef set_prize(item, value)\nSet the price of 52804 to 35."
    )
    assert task.demonstration(REQUEST, "call") == (
        '<tool_call>\n{"name": "set_price", "parameters": {"item": "52804", "value": 35}}\n</tool_call>'
    )


def test_demonstrations_are_right_and_their_tools_are_in_the_prompt() -> None:
    task = ToolCallsTask()
    for sample in task.samples(200, 3, difficulty="harder"):
        assert task.verify(sample, sample.response_text).value == 1
        assert offered_tools(sample.prompt_text) == list(sample.meta["tools"])
        name = json.loads(sample.answer or "")["name"]
        assert any(other != name and other[:4] == name[:4] for other in sample.meta["tools"])


@pytest.mark.parametrize(
    ("made", "call", "parameters", "tool", "reason"),
    [
        (CALL, 1, 1, 1, "none"),
        (ToolCall("set_price", {"value": 35, "item": "52804"}), 1, 1, 1, "none"),
        (ToolCall("set_price", {"item": "52804", "value": "35"}), 0, 1, 1, "value"),
        (ToolCall("set_price", {"item": "52804"}), 0, 0, 1, "redundant_or_missing"),
        (ToolCall("set_price", {"code": "52804", "value": 35}), 0, 0, 1, "hallucinated_and_another"),
        (ToolCall("set_prize", {"item": "52804", "value": 35}), 0, 0, 0, "wrong_tool"),
        (ToolCall("set_cost", {"item": "52804", "value": 35}), 0, 0, 0, "tool_hallucination"),
    ],
)
def test_the_verifier_asks_for_what_match_says(
    made: ToolCall, call: float, parameters: float, tool: float, reason: str
) -> None:
    answer = tagged([made])
    assert [score(answer, match) for match in ("call", "parameters", "tool")] == [
        (call, reason),
        (parameters, reason),
        (tool, reason),
    ]


def test_declared_is_a_call_of_an_offered_tool_without_unknown_arguments() -> None:
    made = [CALL, ToolCall("set_prize", {}), ToolCall("set_price", {"code": "5"}), ToolCall("set_cost", {"item": "5"})]
    assert [score(tagged([one]), "declared")[0] for one in made] == [1, 1, 0, 0]


def test_thoughts_name_the_tool_and_what_it_takes() -> None:
    assert ToolCallsTask().demonstration(REQUEST, "thought") == (
        f"<think> set price takes item and value. </think>\n{tagged([CALL])}"
    )


def test_renamed_tools_are_asked_for_by_the_same_questions() -> None:
    usual, renamed = (ToolCallsTask(names=names, mistakes=0.3).samples(100, 2) for names in ("usual", "renamed"))
    for one, other in zip(usual, renamed, strict=True):
        assert one.prompt_text.splitlines()[-1] == other.prompt_text.splitlines()[-1]
        assert offered_tools(other.prompt_text) == list(other.meta["tools"])
        assert not {*one.meta["tools"], "item", "value", "day"} & {
            *other.meta["tools"],
            *(key for keys in other.meta["tools"].values() for key in keys),
        }
        assert ToolCallsTask().verify(other, other.response[-1]["content"]).value == 1
        first, second = (parse_calls(sample.answer or "")[0].arguments for sample in (one, other))
        assert list(first.values()) == list(second.values())
        assert len(one.response) == len(other.response)


def test_questions_ask_for_several_calls_in_their_order() -> None:
    task = ToolCallsTask(calls=2)
    samples = task.samples(100, 1, style="thought")
    two = [sample for sample in samples if len(parse_calls(sample.answer or "")) == 2]
    assert 30 < len(two) < 70
    for sample in two:
        assert task.verify(sample, sample.response_text).value == 1
        first, second = parse_calls(sample.response_text)
        question = sample.prompt_text.splitlines()[-1]
        assert question.index(first.arguments["item"]) <= question.rindex(second.arguments["item"])
        assert task.verify(sample, tagged([first])).info["reason"] == "missing"
        assert task.verify(sample, tagged([first, second, first])).info["reason"] == "several"
        assert task.verify(sample, tagged([first, ToolCall("none", {})])).info["reason"] == "tool_hallucination"


def test_as_many_tools_are_offered_as_asked_for() -> None:
    for count, difficulty in ((2, "in"), (4, "harder")):
        sample = ToolCallsTask(offered=2).samples(1, 0, difficulty=difficulty)[0]  # type: ignore[arg-type]
        assert len(offered_tools(sample.prompt_text)) == count


def test_unreadable_missing_and_several_calls_are_wrong() -> None:
    assert score("<tool_call>set_price()</tool_call>") == (0, "missing")
    assert score("I would set the price.") == (0, "missing")
    assert score(tagged([CALL, CALL])) == (0, "several")


def test_format_says_whether_the_tools_would_take_the_call() -> None:
    task = ToolCallsTask()
    sample = task._sample(REQUEST, "in", "call")
    wrong, failing = ToolCall("get_price", {"item": "9"}), ToolCall("get_price", {})
    assert task.verify(sample, tagged([wrong])).parts == {"format": 1, "reward": -1.5}
    assert task.verify(sample, tagged([failing])).parts["format"] == 0
    assert score(tagged([wrong]), "accepted")[0] == 1
    assert score(tagged([failing]), "accepted")[0] == 0
    assert task.verify(sample, "no").parts == {"format": 0, "reward": -2}


def test_mistakes_come_before_the_right_call_with_the_error_between() -> None:
    samples = ToolCallsTask(mistakes=0.3).samples(400, 1)
    failing = [sample for sample in samples if len(sample.response) == 3]
    assert 80 < len(failing) < 160
    reasons = set()
    for sample in failing:
        bad, said, good = sample.response
        (call,) = parse_calls(bad["content"])
        assert said == {"role": "tool", "content": refusal(call, sample.meta["tools"])}
        assert ToolCallsTask().verify(sample, good["content"]).value == 1
        reasons.add(said["content"].split(" ", 1)[1].rsplit(" ", 1)[0])
    assert len(reasons) == 3


def test_what_is_not_corrected_ends_with_the_failing_call() -> None:
    for style in ("call", "thought"):
        corrected, left = (
            ToolCallsTask(mistakes=1.0, corrected=yes).samples(30, 1, style=style) for yes in (True, False)
        )
        for one, other in zip(corrected, left, strict=True):
            assert other.response == one.response[:1]
            assert other.answer == one.answer
            assert ToolCallsTask().verify(other, other.response_text).value == 0


def test_the_share_of_mistakes_changes_no_question() -> None:
    none, some = (ToolCallsTask(mistakes=share).samples(50, 1) for share in (0.0, 0.5))
    assert [sample.prompt for sample in none] == [sample.prompt for sample in some]


def test_every_mistake_is_found_by_its_marker_and_every_right_call_is_kept() -> None:
    samples = ToolCallsTask(mistakes=1.0).samples(60, 2)
    kept = curations["failed_calls"](samples, 0)
    assert len(kept) == 60
    assert all(ToolCallsTask().verify(sample, sample.response_text).value == 1 for sample in kept)


def test_arguments_have_the_asked_for_length() -> None:
    for sample in ToolCallsTask(digits=12).samples(20, 1):
        assert len(json.loads(sample.answer or "")["parameters"]["item"]) == 12


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UserError, match="mistakes is 2"):
        ToolCallsTask(mistakes=2)
    with pytest.raises(UserError, match="digits is 0"):
        ToolCallsTask(digits=0)
    with pytest.raises(UserError, match="calls is 2"):
        ToolCallsTask(calls=2, mistakes=0.1)
    with pytest.raises(UserError, match="offered is 10"):
        ToolCallsTask(offered=10)


def test_every_drawn_call_fits_its_tool() -> None:
    for seed in range(50):
        request = ToolCallsTask().problem(Random(seed), "in")
        assert refusal(request.calls[0], {name: list(PARAMETERS[name]) for name in request.offered}) is None
