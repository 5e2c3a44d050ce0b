r"""Tool calls in a model's text: reading them, comparing them with the right ones, and naming what is wrong with them.

Two ways of writing are read: JSON between `<tool_call>` tags, one object a line or a tag (ToolRL, Hermes, Qwen), and
bare JSON (OpenAI's `tool_calls`, or one object or list). Nothing is ever called.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_DECODER = json.JSONDecoder()
_ARGUMENTS = ("arguments", "parameters")


class MalformedCallError(ValueError):
    """A text means to call a tool, but cannot be read; the message says why."""


@dataclass(frozen=True)
class ToolCall:
    """The name of a tool, and its arguments as JSON reads them."""

    name: str
    arguments: Mapping[str, Any]

    def matches(self, other: "ToolCall") -> bool:
        """The same tool with the same arguments; types count (`2` is not `"2"`), the order of arguments does not."""
        return self.name == other.name and same_json(self.arguments, other.arguments)

    def to_json(self) -> str:
        """`{"name": ..., "parameters": {...}}`, as ToolRL writes it."""
        return json.dumps({"name": self.name, "parameters": dict(self.arguments)}, ensure_ascii=False)


class LocatedCall(NamedTuple):
    """A call, and the characters `start` to `stop` of the text that hold its JSON object."""

    call: ToolCall
    start: int
    stop: int


def tagged(calls: List[ToolCall]) -> str:
    """Calls as text: the tags on lines of their own, a call a line between them."""
    return "\n".join([OPEN, *(call.to_json() for call in calls), CLOSE])


def parse_calls(text: str) -> list[ToolCall]:
    """The calls of an answer, in order; none where it calls nothing. Raises `MalformedCallError`."""
    return [located.call for located in locate_calls(text)]


def locate_calls(text: str) -> list[LocatedCall]:
    """The calls of an answer with their places. Only what follows the last `</think>` is read.

    Raises `MalformedCallError` for tags that do not pair up, and for JSON that is none or no call.
    """
    begin = _behind_thoughts(text)
    if OPEN not in text[begin:] and CLOSE not in text[begin:]:
        bare = re.compile(r"\s*(?:```(?:json)?\s*)?(?=[{\[])").match(text, begin)
        return _objects(text, bare.end(), len(text.rstrip("` \n\t"))) if bare else []
    calls, place = [], begin
    for block in re.finditer(rf"{OPEN}(.*?){CLOSE}", text[begin:], re.DOTALL):
        between = text[place : begin + block.start()]
        if OPEN in between or CLOSE in between or OPEN in block[1]:
            break
        calls += _objects(text, begin + block.start(1), begin + block.end(1))
        place = begin + block.end()
    if OPEN in text[place:] or CLOSE in text[place:]:
        raise MalformedCallError(f"{OPEN} and {CLOSE} do not pair up")
    return calls


def strict_calls(text: str) -> list[ToolCall]:
    """The calls of an answer that are written just as ToolRL asks for them, which is how its reward reads.

    Between tags, a line each, an object with `name` and `parameters`; none without a pair of tags, or before the last
    `</think>`. Raises `MalformedCallError`.
    """
    calls = []
    for block in re.findall(rf"{OPEN}(.*?){CLOSE}", text[_behind_thoughts(text) :], re.DOTALL):
        for line in filter(str.strip, block.split("\n")):
            value = _read_json(line)
            if not isinstance(value, Mapping) or not {"name", "parameters"} <= value.keys():
                raise MalformedCallError(f"a call is an object with 'name' and 'parameters', found {line:.60}")
            calls += calls_of(value)
    return calls


def _behind_thoughts(text: str) -> int:
    """Where the answer begins that follows the last `</think>`."""
    place = text.rfind("</think>")
    return 0 if place < 0 else place + len("</think>")


def _objects(text: str, start: int, stop: int) -> list[LocatedCall]:
    """JSON values behind one another (white space between them), each a call or a list of calls."""
    calls: list[LocatedCall] = []
    while start < stop and not (text[start:stop].isspace()):
        start += len(text[start:stop]) - len(text[start:stop].lstrip())
        try:
            value, end = _DECODER.raw_decode(text[:stop], start)
        except (ValueError, RecursionError) as error:  # of a number too long, it is a plain ValueError
            raise MalformedCallError(f"not JSON: {text[start:stop][:60]!r} ({error})") from None
        calls += [LocatedCall(call, start, end) for call in calls_of(value)]
        start = end
    return calls


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedCallError(f"not JSON: {text[:60]!r} ({error})") from None


def calls_of(value: Any) -> list[ToolCall]:
    """The calls that a JSON value stands for: one object, a list, or a message with `tool_calls`.

    Arguments may be called `arguments` or `parameters`, be missing (none), or be JSON inside a string, as OpenAI sends
    them. Raises `MalformedCallError`.
    """
    if isinstance(value, list):
        return [call for item in value for call in calls_of(item)]
    if not isinstance(value, Mapping):
        raise MalformedCallError(f"a call is an object with 'name' and 'parameters', found {value!r:.60}")
    if "tool_calls" in value:
        return calls_of(value["tool_calls"])
    content = value.get("function", value)
    if not isinstance(content, Mapping) or not isinstance(content.get("name"), str):
        raise MalformedCallError(f"a call has a 'name', found {value!r:.60}")
    arguments: Any = next((content[key] for key in _ARGUMENTS if key in content), {})
    if isinstance(arguments, str):
        arguments = _read_json(arguments)
    if not isinstance(arguments, Mapping):
        raise MalformedCallError(f"arguments of '{content['name']}' are no object: {arguments!r:.60}")
    return [ToolCall(content["name"], arguments)]


def same_json(a: Any, b: Any) -> bool:
    """Equality of JSON values, deep and typed: `true` is not 1, `2` is not `"2"`; 2 and 2.0 are the same number."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def same_calls(a: List[ToolCall], b: List[ToolCall]) -> bool:
    """Whether two lists of calls are equal, order included."""
    return len(a) == len(b) and all(x.matches(y) for x, y in zip(a, b, strict=True))


def pair_points(gold: ToolCall, predicted: ToolCall) -> float:
    """How much of a gold call a predicted one gets right: Jaccard of the argument names + number of right values.

    0 for another tool. ToolRL (arXiv 2504.13958, section 3.3): param + value.
    """
    if gold.name != predicted.name:
        return 0.0
    keys, found = gold.arguments.keys(), predicted.arguments.keys()
    return (len(keys & found) / len(keys | found) if keys | found else 1.0) + right_values(gold, predicted)


def right_values(gold: ToolCall, predicted: ToolCall) -> int:
    """How many arguments of a gold call a predicted one has with their right values."""
    both = gold.arguments.keys() & predicted.arguments.keys()
    return sum(same_json(gold.arguments[key], predicted.arguments[key]) for key in both)


Points = Callable[[ToolCall, ToolCall], float]
"""What a predicted call is worth as an answer to a gold one of the same tool: (gold, predicted) -> 0 or more."""


def shared_names(gold: List[ToolCall], predicted: List[ToolCall]) -> int:
    """How many tool names two lists of calls have in common, each as often as both have it: |N_G ∩ N_P|, multisets.

    The union is then `len(gold) + len(predicted)` less that.
    """
    return (Counter(call.name for call in gold) & Counter(call.name for call in predicted)).total()


def match_calls(
    gold: List[ToolCall],
    predicted: List[ToolCall],
    points: Points = pair_points,
    *,
    greedy: bool = False,
    zeros: bool = False,
) -> list[tuple[int, int]]:
    """Pairs (gold, predicted) of positions, one to one and of one tool each, with the largest sum of `points`.

    `greedy`: each gold call in turn takes the best one left, the first of equals (the code of ToolRL). `zeros`: pairs
    that are worth 0 count as pairs too; else they are left out, and greedily taken calls stay free for later ones.
    """
    chances = np.array(
        [[points(g, p) if g.name == p.name else -1.0 for p in predicted] for g in gold], dtype=np.float64
    ).reshape(len(gold), len(predicted))
    if not chances.size:
        return []
    if greedy:
        return _greedy_pairs(chances, zeros)
    # As points are 0 or more, a -1 is only taken where no call of the tool is left: no pair of one tool is lost.
    rows, columns = linear_sum_assignment(chances, maximize=True)
    pairs = [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
    return [pair for pair in pairs if chances[pair] > 0 or (zeros and chances[pair] == 0)]


def _greedy_pairs(chances: npt.NDArray[np.float64], zeros: bool) -> list[tuple[int, int]]:
    pairs = []
    for row in range(len(chances)):
        column = int(chances[row].argmax())
        if chances[row, column] > 0 or (zeros and chances[row, column] == 0):
            pairs.append((row, column))
            chances[:, column] = -1
    return pairs


class CallError(StrEnum):
    """What is wrong with a call (TL-Training, arXiv 2412.15495): the first that holds, from top to bottom."""

    FORMAT = "format"
    TOOL_HALLUCINATION = "tool_hallucination"
    WRONG_TOOL = "wrong_tool"
    HALLUCINATED_REDUNDANT_MISSING = "hallucinated_redundant_missing"
    HALLUCINATED_AND_ANOTHER = "hallucinated_and_another"
    REDUNDANT_MISSING = "redundant_missing"
    HALLUCINATED = "hallucinated"
    REDUNDANT_OR_MISSING = "redundant_or_missing"
    VALUE = "value"
    NONE = "none"

    @property
    def reward(self) -> float:
        """The reward of the paper's table. That three errors cost more than the wrong tool is the paper's intention."""
        return _REWARDS[self]


_REWARDS = dict(zip(CallError, (-2.0, -2.0, -1.5, -1.8, -1.3, -1.0, -0.8, -0.5, -0.25, 1.0), strict=True))


def call_error(call: ToolCall | None, gold: ToolCall, tools: Mapping[str, Collection[str]]) -> CallError:
    """The class of a call that should have been `gold`; None is one that could not be read.

    `tools`: the parameters that each offered tool declares. An empty name counts as the wrong tool.
    """
    if call is None:
        return CallError.FORMAT
    if call.name and call.name not in tools:
        return CallError.TOOL_HALLUCINATION
    if call.name != gold.name:
        return CallError.WRONG_TOOL
    given, wanted, declared = set(call.arguments), set(gold.arguments), set(tools[call.name])
    hallucinated, redundant, missing = bool(given - declared), bool((given & declared) - wanted), bool(wanted - given)
    if hallucinated and redundant and missing:
        return CallError.HALLUCINATED_REDUNDANT_MISSING
    if hallucinated and (redundant or missing):
        return CallError.HALLUCINATED_AND_ANOTHER
    if redundant and missing:
        return CallError.REDUNDANT_MISSING
    if hallucinated:
        return CallError.HALLUCINATED
    if redundant or missing:
        return CallError.REDUNDANT_OR_MISSING
    return CallError.NONE if same_json(call.arguments, gold.arguments) else CallError.VALUE


_OFFERS = (
    re.compile(r"^\d+\. Name: (.+?)\s*$", re.MULTILINE),  # ToolRL
    re.compile(r"^def (\w+)\(", re.MULTILINE),  # TL-Training
    re.compile(r'"name": ?"((?:[^"\\]|\\.)+)"'),  # the JSON of chat templates
)


def offered_tools(prompt: str) -> list[str]:
    """The names of the tools that a prompt declares, each once: `1. Name: ...`, `def name(`, or `"name": "..."`.

    The first of these ways that occurs decides: histories hold JSON with names that are no tools.
    """
    for pattern in _OFFERS:
        if names := pattern.findall(prompt):
            return list(dict.fromkeys(names))
    return []
