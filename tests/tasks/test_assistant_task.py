"""The synthetic assistant: right actions are right, thoughts do not matter, and tools answer as they should."""

import re
from itertools import pairwise

import pytest

from posttrain.data import assistant
from posttrain.errors import UserError
from posttrain.rewards.reason_act import read_turn
from posttrain.tasks.assistant import TOOLS, Assistant

TURNS = Assistant().samples(400, 0)
DIALOGUES = Assistant(turns="dialogues").samples(100, 0)


@pytest.mark.parametrize("style", Assistant.styles)
@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_demonstrations_are_right_and_call_offered_tools_with_all_arguments(style, difficulty):
    task = Assistant()
    for sample in task.samples(200, 1, style=style, difficulty=difficulty):
        assert task.verify(sample, sample.response_text).value == 1
        turn = read_turn(sample.response_text)
        assert (turn.thought is None) == (style == "action")
        for call in turn.calls:
            assert list(call.arguments) == sample.meta["tools"][call.name] == list(TOOLS[call.name])
        assert len(sample.meta["tools"]) == (3 if difficulty == "in" else 6)


def test_turns_are_of_every_sort_and_come_behind_the_right_turns_before_them():
    kinds = {(read_turn(s.answer).kind, s.meta["inference"], len(s.prompt)) for s in TURNS}
    assert kinds == {("tool", False, 2), ("tool", True, 2), ("answer", False, 2), ("tool", False, 4)} | {
        ("answer", False, 4),
        ("answer", True, 4),
    }
    for sample in TURNS:
        assert "<think>" not in str(sample.prompt)
        assert [turn["role"] for turn in sample.prompt][:2] == ["system", "user"]


def _inferred(question):
    """The right call to a question, worked out anew."""
    if found := re.search(r"Wait (\d+) hours and (\d+) minutes", question):
        return "wait", {"minutes": 60 * int(found[1]) + int(found[2])}
    if found := re.search(r"Go (\d+) km. From (\d+) km on take the bus", question):
        return ("bus" if int(found[1]) >= int(found[2]) else "walk"), {"km": int(found[1])}
    found = re.search(r"Today is day (\d+). (.*) in (\d+) days", question)
    return found and ("", {"day": int(found[1]) + int(found[3])})


def test_inferred_calls_follow_from_the_question():
    inferred = [s for s in TURNS if s.meta["inference"] and len(s.prompt) == 2]
    assert len(inferred) > 100
    for sample in inferred:
        (call,) = read_turn(sample.answer).calls
        name, arguments = _inferred(sample.prompt_text)
        assert call.name == name or not name
        assert arguments.items() <= call.arguments.items()


def test_a_score_says_what_was_right():
    task = Assistant()
    tool = next(s for s in TURNS if s.answer.startswith("<tool_call>") and not s.meta["inference"])
    words = next(s for s in TURNS if s.answer == "Which day?")
    right = task.verify(tool, f"<think>so be it</think>{tool.answer}")
    assert (right.value, right.info["reason"]) == (1, "found")
    everything = {
        **dict.fromkeys(("format", "accuracy_kind", "accuracy_kind_tool", "accuracy_copy"), 1),
        "precision": 1,
        "recall": 1,
    }
    assert right.parts == everything
    assert task.verify(tool, "Which day?").parts == {
        **{key: 0 for key in everything if key != "precision"},
        "format": 1,
    }
    over_calling = task.verify(words, tool.answer)
    assert over_calling.parts == {
        **dict.fromkeys(("accuracy_kind", "accuracy_kind_answer", "accuracy_copy", "precision"), 0),
        "format": 1,
    }
    assert task.verify(words, "which day").value == 1
    malformed = task.verify(tool, "<tool_call>{")
    assert (malformed.value, malformed.parts["format"], malformed.info["reason"]) == (0, 0, "malformed")
    assert task.verify(tool, tool.answer.replace("}}", ', "now": 1}}')).value == 0


def test_a_dialogue_needs_what_the_environment_says():
    task = Assistant(turns="dialogues")
    for sample in DIALOGUES:
        first, reply, last = sample.response
        assert task.environment(sample, [first]) == reply
        assert task.environment(sample, [assistant("<think>a</think>" + first["content"])]) == reply
        assert last["content"] == sample.answer
        assert task.environment(sample, sample.response) is None
        assert task.verify(sample, first["content"]).value == 0
        assert reply["content"] not in str(sample.prompt)


def test_the_environment_says_nothing_to_what_cannot_be_read_and_knows_only_some():
    task = Assistant(turns="dialogues")
    sample = DIALOGUES[0]
    assert task.environment(sample, [assistant("<tool_call>{")]) is None
    find = '<tool_call>{"name": "find", "arguments": {"room": 0}}</tool_call>'
    assert task.environment(sample, [assistant(find)]) == "unknown"
    assert task.environment(TURNS[0], [assistant("What?")]) is None


def test_parts_share_no_request():
    train, test = ({str(s.prompt[1:]) for s in Assistant(part=part).samples(300, 3)} for part in ("train", "test"))
    assert not train & test


def test_turns_can_be_chosen():
    assert all(s.meta["inference"] for s in Assistant(turns="inference").samples(50, 0))
    assert not any(s.meta["inference"] for s in Assistant(turns="copy").samples(50, 0))
    with pytest.raises(UserError, match="did you mean 'inference'"):
        Assistant(turns="inferences")


def test_the_same_arguments_give_the_same_samples():
    again = Assistant().samples(400, 0)
    assert [s.id for s in again] == [s.id for s in TURNS]
    assert all(a.id != b.id for a, b in pairwise(TURNS))
