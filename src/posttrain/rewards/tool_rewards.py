"""Rewards for calling tools: ToolRL's points for each level of a call, and TL-Training's table of errors."""

import re
from collections.abc import Mapping
from collections.abc import Sequence as List
from typing import Annotated, Literal

from pydantic import Field

from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import group_reward, reward
from posttrain.rewards.score import Score
from posttrain.rewards.tool_calls import (
    CLOSE,
    OPEN,
    CallError,
    MalformedCallError,
    ToolCall,
    call_error,
    match_calls,
    pair_points,
    parse_calls,
    right_values,
    same_calls,
    shared_names,
    strict_calls,
)

Granularity = Literal["original", "finegrained", "intermediate", "coarse"]
Scale = Literal["original", "equal_max", "two_stage", "dynamic"]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]

_THOUGHT = r"<think>.*?</think>"
_CALLS = rf"\n{OPEN}\n.*?\n{CLOSE}"
_REPLY = r"\n<response>.*?</response>"


@group_reward("toolrl")
def toolrl(
    attempts: List[Attempt],
    progress: float,
    *,
    granularity: Granularity = "original",
    scale: Scale = "original",
    greedy: bool = False,
    switch: Share = 2 / 7,
) -> list[Score]:
    """ToolRL (arXiv 2504.13958, section 3.3): how the answer is written, 0 or 1, + how right its calls are, -3 to 3.

    Right calls: `call_points` of `granularity`, mapped to the range; what cannot be read is worth the least. Where
    nothing is to be called that part is 0 whatever is said. `scale` (p = progress) gives (written, right):

    - original: 0 to 1, -3 to 3. equal_max: 0 to 1, -1 to 1.
    - two_stage: equal_max up to `switch` (step 30 of 105), then 0 to 0.5, -3 to 3.
    - dynamic: -2 + p to 2 - p, -2 - p to 2 + p (the paper; its code moves the lower end of the former twice as fast).

    `greedy`: the code's matching; the paper's is optimal. `parts`: format, correctness.
    """
    ends = _ranges(scale, progress, switch)
    return [_toolrl(attempt, ends, granularity, greedy) for attempt in attempts]


@group_reward("thought_length")
def thought_length(
    attempts: List[Attempt], progress: float, *, target: Annotated[int, Field(ge=1)] = 512, growth: float = 0.0
) -> list[float]:
    """ToolRL's bonus of length: min(words between the think tags / L, 1), L = `target` (1 + `growth` progress).

    0 without the tags. The paper's dynamic length is growth 1; its code's is target 384, growth 2/3.
    """
    found = [re.search(_THOUGHT, attempt.text, re.DOTALL) for attempt in attempts]
    words = [len(thought[0][len("<think>") : -len("</think>")].split()) if thought else 0 for thought in found]
    return [min(1.0, count / (target * (1 + growth * progress))) for count in words]


@reward("call_errors")
def call_errors(attempt: Attempt) -> Score:
    """TL-Training's table of errors (arXiv 2412.15495): from -2 for a call that cannot be read to 1 for a right one.

    The sample's `answer` is one call, its `meta["tools"]` the parameters that each offered tool declares. Anything but
    one call that can be read is an error of format. `parts`: a 1 at the class of the error, 0 at the others.
    """
    gold = parse_calls(attempt.sample.answer or "")
    tools = attempt.sample.meta.get("tools")
    if len(gold) != 1 or not isinstance(tools, Mapping):
        return Score(0.0, error="reward 'call_errors' compares with one call, 'answer', and reads meta 'tools'")
    try:
        calls = parse_calls(attempt.text)
    except MalformedCallError:
        calls = []
    error = call_error(calls[0] if len(calls) == 1 else None, gold[0], tools)
    return Score(error.reward, {str(each): float(each is error) for each in CallError}, {"reason": str(error)})


def toolrl_format(text: str, *, calls: bool, reply: bool) -> float:
    """1 where the whole answer has ToolRL's shape: thoughts, then `calls` and a `reply` as the gold has them; else 0.

    Each tag of the blocks asked for comes once, and the newlines between them count.
    """
    shape = _THOUGHT + _CALLS * calls + _REPLY * reply
    tags = ["<think>", "</think>", *(OPEN, CLOSE) * calls, *("<response>", "</response>") * reply]
    whole = text.strip()
    return float(all(whole.count(tag) == 1 for tag in tags) and bool(re.fullmatch(shape, whole, re.DOTALL)))


def call_points(
    gold: List[ToolCall], predicted: List[ToolCall], granularity: Granularity = "original", *, greedy: bool = False
) -> float:
    """The share S / S_max in [0, 1] of ToolRL's points that the predicted calls earn; 1 for equal lists.

    S = r_name + Σ over matched pairs of the points of a pair; `gold` is not empty.

    - original: r_name is the Jaccard index of the names as multisets (the code; the paper writes sets), a pair earns
      `pair_points`, S_max = 1 + Σ (1 + arguments of a gold call).
    - finegrained: the point for the names only if their lists are equal, that for a pair's arguments only if all are.
    - intermediate: a pair earns 1 if it is equal, S_max = 1 + gold calls. coarse: nothing but equal lists earns.
    """
    if same_calls(gold, predicted):
        return 1.0
    if granularity == "coarse":
        return 0.0
    shared = shared_names(gold, predicted)
    names = shared / (len(gold) + len(predicted) - shared)
    points, most = pair_points, len(gold) + sum(len(call.arguments) for call in gold)
    if granularity == "finegrained":
        names, points = float([call.name for call in gold] == [call.name for call in predicted]), _whole_key_points
    elif granularity == "intermediate":
        points, most = _whole_call_points, len(gold)
    pairs = match_calls(gold, predicted, points, greedy=greedy)
    return (names + sum(points(gold[g], predicted[p]) for g, p in pairs)) / (1 + most)


def _whole_key_points(gold: ToolCall, predicted: ToolCall) -> float:
    return (gold.arguments.keys() == predicted.arguments.keys()) + right_values(gold, predicted)


def _whole_call_points(gold: ToolCall, predicted: ToolCall) -> float:
    return float(gold.matches(predicted))


def _ranges(scale: Scale, progress: float, switch: float) -> tuple[Range, Range]:
    """Lowest and highest value of the format, and of the calls."""
    if scale == "dynamic":
        return (progress - 2, 2 - progress), (-2 - progress, 2 + progress)
    if scale == "equal_max" or (scale == "two_stage" and progress < switch):
        return (0.0, 1.0), (-1.0, 1.0)
    return (0.0, 0.5 if scale == "two_stage" else 1.0), (-3.0, 3.0)


def _toolrl(attempt: Attempt, ends: tuple[Range, Range], granularity: Granularity, greedy: bool) -> Score:
    answer = attempt.sample.answer
    if answer is None:
        return Score(0.0, error="reward 'toolrl' compares with the sample's 'answer', and there is none")
    gold = parse_calls(answer)
    written = toolrl_format(attempt.text, calls=bool(gold), reply="<response>" in answer)
    try:
        right = call_points(gold, strict_calls(attempt.text), granularity, greedy=greedy) if gold else None
    except MalformedCallError:
        right = 0.0
    parts = {
        "format": _between(ends[0], written),
        "correctness": 0.0 if right is None else _between(ends[1], right),
    }
    return Score(sum(parts.values()), parts)


def _between(ends: Range, share: float) -> float:
    return ends[0] + share * (ends[1] - ends[0])
