r"""A turn of an agent that thinks and then acts: calls of tools, or words to the user (arXiv 2512.11277)."""

import re
from collections import Counter
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import reward
from posttrain.rewards.score import Score
from posttrain.rewards.tool_calls import (
    CLOSE,
    OPEN,
    MalformedCallError,
    ToolCall,
    match_calls,
    parse_calls,
    right_values,
    shared_names,
)

Kind = Literal["tool", "answer"]
Weight = Annotated[float, Field(ge=0)]

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)
_TAG = re.compile(r"</?(?:think|tool_call)>")


@dataclass(frozen=True)
class AgentTurn:
    """What the assistant did: `calls` of tools, or, without any, `words` to the user. `thought`: None without tags."""

    calls: tuple[ToolCall, ...]
    words: str
    thought: str | None = None

    @property
    def kind(self) -> Kind:
        """Does the turn call tools, or answer?"""
        return "tool" if self.calls else "answer"


def read_turn(text: str) -> AgentTurn:
    """`<think>` a thought `</think>`, which may be missing, then one block of calls and nothing else, or plain words.

    Raises `MalformedCallError` for anything else: other tags, words beside a block, no calls and no words.
    """
    thought, action = None, text.strip()
    if found := _THOUGHT.fullmatch(text):
        thought, action = found[1].strip(), found[2].strip()
    inside = action.removeprefix(OPEN).removesuffix(CLOSE) if _is_block(action) else action
    if not inside.strip() or _TAG.search(inside) or _TAG.search(thought or ""):
        raise MalformedCallError("a turn is a thought, then one block of calls or plain words")
    if inside == action:
        return AgentTurn((), action, thought)
    calls = tuple(parse_calls(action))
    if not calls:
        raise MalformedCallError("the block holds no call")
    return AgentTurn(calls, "", thought)


def _is_block(action: str) -> bool:
    return action.startswith(OPEN) and action.endswith(CLOSE)


@reward("reason_act")
def reason_act(
    attempt: Attempt,
    *,
    tools: Literal["graded", "exact"] = "graded",
    answers: Literal["graded", "exact", "number"] = "graded",
    format_weight: Weight = 1.0,
    tool_weight: Weight = 1.0,
    answer_weight: Weight = 1.0,
) -> Score:
    """R = w_F F + w_T A where the sample's `answer` calls tools, w_F F + w_A A where it is words; 0 where F is 0.

    F: the attempt reads as a turn (`read_turn`) with a thought that is not empty. A: how right its action is, 0 for one
    of the other kind. `tools`: `call_f1`, or 1 for the same calls in any order. `answers`: `word_f1`, or 1 for the same
    words, or for the same number (the last of each text). What the thought says is never scored.

    arXiv 2512.11277, as reconstructed from its abstract. `parts`: format, tool or answer (A). Where words are free in
    form, set `answer_weight` to 0 and add a judge. A text that was cut off has the format of what it is.
    """
    if attempt.sample.answer is None:
        return Score(0.0, error="reward 'reason_act' compares with the sample's 'answer', and there is none")
    gold = read_turn(attempt.sample.answer)
    weight = tool_weight if gold.calls else answer_weight
    try:
        turn = read_turn(attempt.text)
    except MalformedCallError:
        turn = None
    if turn is None or not turn.thought:
        return Score(0.0, {"format": 0.0, gold.kind: 0.0})
    right = _action(gold, turn, tools, answers)
    return Score(format_weight + weight * right, {"format": 1.0, gold.kind: right})


def _action(gold: AgentTurn, turn: AgentTurn, tools: str, answers: str) -> float:
    """How right an action is, in [0, 1]."""
    if gold.kind != turn.kind:
        return 0.0
    if gold.calls:
        return call_f1(gold.calls, turn.calls) if tools == "graded" else float(equal_calls(gold.calls, turn.calls))
    if answers == "number":
        numbers = [re.findall(r"-?\d+(?:\.\d+)?", words) for words in (gold.words, turn.words)]
        return float(all(numbers) and float(numbers[0][-1]) == float(numbers[1][-1]))
    return word_f1(gold.words, turn.words) if answers == "graded" else float(same_words(gold.words, turn.words))


def call_f1(gold: List[ToolCall], predicted: List[ToolCall]) -> float:
    """nameF1 * argF1: F1 of the multisets of names, times the mean F1 of (argument, value) pairs of matched calls.

    Calls of one name are matched in the order of `gold`, each with the best one left. Two calls without arguments are
    equal; no common name is 0.
    """
    pairs = match_calls(gold, predicted, argument_f1, greedy=True, zeros=True)
    if not pairs:
        return 0.0
    names = 2 * shared_names(gold, predicted) / (len(gold) + len(predicted))
    return names * sum(argument_f1(gold[g], predicted[p]) for g, p in pairs) / len(pairs)


def argument_f1(gold: ToolCall, predicted: ToolCall) -> float:
    """F1 of two sets of (argument, JSON value) pairs; types count. 1 where both are empty."""
    most = len(gold.arguments) + len(predicted.arguments)
    return 2 * right_values(gold, predicted) / most if most else 1.0


def equal_calls(gold: List[ToolCall], predicted: List[ToolCall]) -> bool:
    """Are the calls the same, in any order?"""
    left = list(predicted)
    for call in gold:
        same = next((place for place, other in enumerate(left) if call.matches(other)), None)
        if same is None:
            return False
        del left[same]
    return not left


def word_f1(gold: str, predicted: str) -> float:
    """F1 of two multisets of words, in lower case and without what is neither letter nor digit."""
    wanted, said = _words(gold), _words(predicted)
    most = len(wanted) + len(said)
    return 2 * (Counter(wanted) & Counter(said)).total() / most if most else 1.0


def same_words(gold: str, predicted: str) -> bool:
    """Are the words the same, in their order?"""
    return _words(gold) == _words(predicted)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
