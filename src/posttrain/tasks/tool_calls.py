r"""Calls of simulated tools whose names begin alike: `Get the price of 52804.` -> `get_price(item="52804")`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Literal, NamedTuple

from posttrain.data import Sample, assistant
from posttrain.errors import UserError
from posttrain.rewards import Score
from posttrain.rewards.tool_calls import CallError, MalformedCallError, ToolCall, call_error, parse_calls, tagged
from posttrain.tasks.generated import GeneratedTask, Part
from posttrain.tasks.task import Difficulty, tasks

Match = Literal["call", "parameters", "tool", "accepted", "declared"]
"""What has to be right: the whole call; its tool and the names of its arguments; its tool. "accepted": the offered
tools take the call, right or wrong; "declared": it is of one of them, without arguments that the tool does not have."""
Names = Literal["usual", "renamed"]

VERBS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "get": (("Get", "Read", "Tell"), ("item",)),
    "set": (("Set", "Change", "Make"), ("item", "value")),
    "find": (("Find", "Look up", "Show"), ("item", "day")),
}
"""The first word of a tool's name: how a question says it, and the parameters."""
THINGS: dict[str, tuple[str, ...]] = {
    "price": ("price", "worth"),
    "prize": ("prize", "award"),
    "print": ("print", "copy"),
    "color": ("color", "shade"),
    "cost": ("cost", "fee"),
    "count": ("count", "number"),
}
"""The second word, and how a question says it."""
PARAMETERS: dict[str, tuple[str, ...]] = {
    f"{verb}_{thing}": parameters for verb, (_, parameters) in VERBS.items() for thing in THINGS
}
"""Every tool with its parameters, all of them required."""

RENAMED: dict[str, str] = (
    {"get": "read", "set": "change", "find": "show"}
    | {thing: other for thing, (_, other) in THINGS.items()}
    | {"item": "code", "value": "amount", "day": "date"}
)
"""Words of the names of tools and parameters, and what they are called where they are `renamed`."""


class Request(NamedTuple):
    """One question: the names of the `offered` tools, the right calls, how it is asked, and a call that fails."""

    offered: tuple[str, ...]
    calls: tuple[ToolCall, ...]
    question: str
    mistake: ToolCall | None


@tasks.register("tool_calls")
class ToolCallsTask(GeneratedTask[Request]):
    """Choose one of `offered` tools (twice as many in `harder`) whose names begin alike, and fill in its arguments.

    `calls`: questions ask for 1 to so many calls, in their order. `digits`: length of the argument `item`, which has to
    be copied. `mistakes`: share of demonstrations that first make a call that fails, get its error, and then call
    rightly; not `corrected`, they end with the failing call. `match`: what the verifier asks for: a right "call", the
    right tool and "parameters", the right "tool", or a call that is "accepted", which is also what `format_validity` of
    an evaluation counts. `names`: "renamed" tools and parameters have other names, made of words that questions use.
    Styles: "call", and "thought", which says first which tool it is and what it takes.
    """

    name = "tool_calls"
    styles = ("call", "thought")

    def __init__(
        self,
        *,
        digits: int = 4,
        offered: int = 3,
        calls: int = 1,
        mistakes: float = 0.0,
        corrected: bool = True,
        match: Match = "call",
        names: Names = "usual",
        part: Part = "any",
    ) -> None:
        super().__init__(part=part)
        if not 2 <= offered <= len(PARAMETERS) // 2:
            raise UserError(f"task 'tool_calls': offered is {offered}; give 2 to {len(PARAMETERS) // 2} tools")
        if digits < 1:
            raise UserError(f"task 'tool_calls': digits is {digits}; an item has 1 or more")
        if calls < 1 or (calls > 1 and mistakes):
            raise UserError(f"task 'tool_calls': calls is {calls}; give 1 or more, and with mistakes 1")
        if not 0 <= mistakes <= 1:
            raise UserError(f"task 'tool_calls': mistakes is {mistakes}; give a share from 0 to 1")
        self.digits, self.offered, self.calls, self.mistakes = digits, offered, calls, mistakes
        self.corrected, self.match, self.names = corrected, match, names

    def problem(self, rng: Random, difficulty: Difficulty) -> Request:
        """Draw the tools, one of them to call, and its arguments."""
        verb, thing = rng.choice(list(VERBS)), rng.choice(list(THINGS))
        name = f"{verb}_{thing}"
        alike = [other for other in PARAMETERS if other != name and other.startswith(verb)]
        others = [rng.choice(alike)]
        rest = [other for other in PARAMETERS if other not in (name, *others)]
        count = self.offered * (2 if difficulty == "harder" else 1)
        offered = [name, *others, *rng.sample(rest, count - 2)]
        rng.shuffle(offered)
        call, question = self._asked(rng, name)
        mistake = _mistake(rng, call, offered)  # drawn always, so that the questions are the same at every share
        request = Request(tuple(offered), (call,), question, mistake if rng.random() < self.mistakes else None)
        for _ in range(rng.randint(1, self.calls) - 1 if self.calls > 1 else 0):
            call, question = self._asked(rng, rng.choice(offered))
            request = request._replace(calls=(*request.calls, call), question=f"{request.question} {question}")
        return _renamed(request) if self.names == "renamed" else request

    def _asked(self, rng: Random, name: str) -> tuple[ToolCall, str]:
        """A call of a tool with drawn arguments, and the sentence that asks for it."""
        verb, thing = name.split("_")
        item = "".join(rng.choice("0123456789") for _ in range(self.digits))
        drawn = {"item": item, "value": rng.randint(1, 99), "day": rng.randint(1, 31)}
        call = ToolCall(name, {key: drawn[key] for key in PARAMETERS[name]})
        ending = {"get": "", "set": f" to {drawn['value']}", "find": f" on day {drawn['day']}"}[verb]
        return call, f"{rng.choice(VERBS[verb][0])} the {rng.choice(THINGS[thing])} of {item}{ending}."

    def prompt(self, problem: Request) -> str:
        """The tools as Python signatures, a line each, then the question."""
        lines = [f"def {name}({', '.join(keys)})" for name, keys in self._tools(problem).items()]
        return "\n".join([*lines, problem.question])

    def canonical(self, problem: Request) -> str:
        """The question, whatever tools are offered."""
        return problem.question

    def demonstration(self, problem: Request, style: str) -> str:
        """The calls between their tags, behind a thought in the style "thought"."""
        return _written(problem.calls, style)

    def answer(self, problem: Request) -> str:
        """The right calls as JSON, a line each."""
        return "\n".join(call.to_json() for call in problem.calls)

    def details(self, problem: Request) -> dict[str, Any]:
        """`tools`: what each offered tool takes. `match`: what has to be right."""
        return {"tools": self._tools(problem), "match": self.match}

    def _tools(self, problem: Request) -> dict[str, list[str]]:
        if self.names == "usual":
            return {name: list(PARAMETERS[name]) for name in problem.offered}
        renamed = {_other(name): [RENAMED[key] for key in keys] for name, keys in PARAMETERS.items()}
        return {name: renamed[name] for name in problem.offered}

    def _sample(self, problem: Request, difficulty: Difficulty, style: str) -> Sample:
        sample = super()._sample(problem, difficulty, style)
        if problem.mistake is None:
            return sample
        failing = assistant(_written([problem.mistake], style))
        if not self.corrected:
            return replace(sample, response=(failing,))
        said = {"role": "tool", "content": f"{refusal(problem.mistake, sample.meta['tools'])}"}
        return replace(sample, response=(failing, said, *sample.response))

    def verify(self, sample: Sample, answer: str) -> Score:
        """1 if each call of the answer is right in what `match` asks for, and there are as many as should be.

        `parts`: "format" (the offered tools would take them), "reward" (the mean of TL-Training's table).
        `info["reason"]` is the class of the first error (`CallError`), or "missing" or "several" calls.
        """
        gold = parse_calls(sample.answer or "")
        if not gold:
            return Score(0.0, error=f"sample {sample.id}: answer {sample.answer!r} is no call to compare with")
        tools: Mapping[str, list[str]] = sample.meta.get("tools") or {call.name: list(call.arguments) for call in gold}
        try:
            calls = parse_calls(answer)
        except MalformedCallError:
            calls = []
        if len(calls) != len(gold):
            reason = "several" if len(calls) > len(gold) else "missing"
            return Score(0.0, {"format": 0.0, "reward": CallError.FORMAT.reward}, {"reason": reason})
        errors = [call_error(call, wanted, tools) for call, wanted in zip(calls, gold, strict=True)]
        accepted = all(refusal(call, tools) is None for call in calls)
        right = {
            "call": all(error is CallError.NONE for error in errors),
            "parameters": all(error in (CallError.NONE, CallError.VALUE) for error in errors),
            "tool": [call.name for call in calls] == [wanted.name for wanted in gold],
            "accepted": accepted,
            "declared": all(call.name in tools and set(call.arguments) <= set(tools[call.name]) for call in calls),
        }[str(sample.meta.get("match", "call"))]
        parts = {"format": float(accepted), "reward": sum(error.reward for error in errors) / len(errors)}
        first = next((error for error in errors if error is not CallError.NONE), CallError.NONE)
        extracted = "\n".join(call.to_json() for call in calls)
        return Score(float(right), parts, {"reason": str(first), "extracted": extracted})


def refusal(call: ToolCall, tools: Mapping[str, list[str]]) -> str | None:
    """What the simulated environment says of a call that it cannot take; None where it can."""
    if call.name not in tools:
        return f"{call.name} is not defined"
    unknown = [key for key in call.arguments if key not in tools[call.name]]
    if unknown:
        return f"{call.name} got an unexpected keyword {unknown[0]}"
    absent = [key for key in tools[call.name] if key not in call.arguments]
    return f"{call.name} needs a positional argument {absent[0]}" if absent else None


def _written(calls: Sequence[ToolCall], style: str) -> str:
    if style == "call":
        return tagged(calls)
    thoughts = [f"{call.name.replace('_', ' ')} takes {' and '.join(call.arguments) or 'nothing'}." for call in calls]
    return f"<think> {' '.join(thoughts)} </think>\n{tagged(calls)}"


def _other(name: str) -> str:
    """What a tool is called where it is renamed."""
    return "_".join(RENAMED[word] for word in name.split("_"))


def _renamed(request: Request) -> Request:
    def call(old: ToolCall) -> ToolCall:
        return ToolCall(_other(old.name), {RENAMED.get(key, key): value for key, value in old.arguments.items()})

    mistake = request.mistake and call(request.mistake)
    return request._replace(
        offered=tuple(map(_other, request.offered)), calls=tuple(map(call, request.calls)), mistake=mistake
    )


def _mistake(rng: Random, call: ToolCall, offered: list[str]) -> ToolCall:
    """A call that fails: of a tool that is not offered, with an argument that does not exist, or without one."""
    kind = rng.randrange(3)
    if kind == 0:
        return replace(call, name=rng.choice([name for name in PARAMETERS if name not in offered]))
    if kind == 1:
        return replace(
            call, arguments={"code" if key == "item" else key: call.arguments[key] for key in call.arguments}
        )
    return replace(call, arguments={key: call.arguments[key] for key in call.arguments if key != "item"})
