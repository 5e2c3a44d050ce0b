r"""An assistant with a few tools, turn by turn: `Wait 2 hours and 25 minutes.` -> `wait(minutes=145)`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args

from posttrain.data import Message, Sample, assistant, user
from posttrain.errors import UserError, nearest
from posttrain.rewards import Score
from posttrain.rewards.reason_act import AgentTurn, equal_calls, read_turn, same_words
from posttrain.rewards.tool_calls import CLOSE, OPEN, MalformedCallError, ToolCall
from posttrain.tasks.generated import GeneratedTask, Part
from posttrain.tasks.task import Difficulty, tasks

Turns = Literal["all", "copy", "inference", "dialogues"]
"""Which turns are asked for: all; those whose action copies what was said, or has to be worked out; the first of whole
dialogues in which a second one follows, which has to be right."""

TOOLS: dict[str, tuple[str, ...]] = {
    "walk": ("km",),
    "bus": ("km",),
    "wait": ("minutes",),
    "book": ("room", "day"),
    "pay": ("room", "coins", "day"),
    "find": ("room",),
}
"""Every tool with its parameters, all of them required."""
OFFERED: dict[Difficulty, int] = {"in": 3, "harder": 6}
LIMIT: dict[Difficulty, int] = {"in": 99, "harder": 999}
"""Days, rooms, kilometres and coins go up to here."""

_COPIED = "all there"


@dataclass(frozen=True)
class Move:
    """A turn of the assistant: what it thinks, what it does, and whether that has to be worked out."""

    thought: str
    action: str
    worked: bool = False


@dataclass(frozen=True)
class Scene:
    """What a user asks, the assistant's moves, and between two of them what a tool or the user says.

    `choice`: tools to choose from, which have to be offered though one alone is called.
    """

    question: str
    moves: tuple[Move, ...]
    replies: tuple[Message, ...] = ()
    choice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """A problem: move number `place` of a scene, with the names of the tools that are `offered`."""

    scene: Scene
    place: int
    offered: tuple[str, ...]


@tasks.register("assistant")
class Assistant(GeneratedTask[Turn]):
    """Call the right one of 3 tools with 1 to 3 arguments (of 6, and larger numbers, in `harder`), or say what is due.

    Problems are single turns cut from dialogues, behind the right turns before them: requests to copy into a call;
    requests to infer one from (hours to minutes, a day and days to come, the tool by a limit); requests that lack an
    argument, which has to be asked for; answers from what a tool has said. `turns`: which of them; "dialogues" are
    whole ones, and `environment` plays tools and user. Right is the very call, or the same words. Styles: "action",
    and "think", with a short thought before.

    `parts` of a score: format; accuracy_kind (is it a call, or words, as it should be), accuracy_kind_tool and
    accuracy_kind_answer (the same, of turns that should be one); precision and recall of calls; accuracy_copy and
    accuracy_inference (is the action right, of turns of this sort).
    """

    name = "assistant"
    styles = ("action", "think")

    def __init__(self, *, turns: Turns = "all", part: Part = "any") -> None:
        super().__init__(part=part)
        if turns not in get_args(Turns):
            raise UserError(f"task 'assistant': turns is '{turns}': {nearest(str(turns), get_args(Turns))}")
        self.turns = turns

    def problem(self, rng: Random, difficulty: Difficulty) -> Turn:
        """Draw a scene, one of its moves, and the tools."""
        while True:
            scene = rng.choices(_SCENES, _WEIGHTS)[0](rng, LIMIT[difficulty])
            place = rng.randrange(len(scene.moves))
            needed = scene.choice or _called(scene)
            rest = [name for name in TOOLS if name not in needed]
            offered = [*needed, *rng.sample(rest, OFFERED[difficulty] - len(needed))]
            rng.shuffle(offered)
            if self.turns == "dialogues":
                if len(scene.moves) > 1:
                    return Turn(scene, 0, tuple(offered))
            elif self.turns == "all" or scene.moves[place].worked == (self.turns == "inference"):
                return Turn(scene, place, tuple(offered))

    def prompt(self, problem: Turn) -> str:
        """The tools as Python signatures, a line each, and all that was said."""
        return "\n".join(str(message["content"]) for message in _context(problem))

    def canonical(self, problem: Turn) -> str:
        """The user's request and the replies, whatever tools are offered."""
        seen = problem.scene.replies if self.turns == "dialogues" else problem.scene.replies[: problem.place]
        return "\n".join([problem.scene.question, *(str(reply["content"]) for reply in seen)])

    def demonstration(self, problem: Turn, style: str) -> str:
        """The action, with a thought before it in the style "think"."""
        return _written(problem.scene.moves[problem.place], style)

    def answer(self, problem: Turn) -> str:
        """The action of the turn; of a whole dialogue, its last one."""
        return problem.scene.moves[-1 if self.turns == "dialogues" else problem.place].action

    def details(self, problem: Turn) -> dict[str, Any]:
        """`inference`: must it be worked out? `tools`: what each takes. `replies`: what is said to which action."""
        moves = problem.scene.moves
        last = moves[-1] if self.turns == "dialogues" else moves[problem.place]
        found = {"inference": last.worked, "tools": {name: list(TOOLS[name]) for name in problem.offered}}
        if self.turns == "dialogues":
            acts = zip(moves, problem.scene.replies, strict=False)
            found["replies"] = [{"to": move.action, **reply} for move, reply in acts]
        return found

    def _sample(self, problem: Turn, difficulty: Difficulty, style: str) -> Sample:
        sample = super()._sample(problem, difficulty, style)
        response = list(sample.response)
        if self.turns == "dialogues":
            for reply, move in zip(problem.scene.replies, problem.scene.moves[1:], strict=True):
                response += [reply, assistant(_written(move, style))]
        return Sample(_context(problem), tuple(response), answer=sample.answer, task=self.name, meta=sample.meta)

    def environment(self, sample: Sample, turns: Sequence[Message]) -> str | Message | None:
        """What a tool, or the user who is asked, says to the last of `turns`; None where nothing is to be said.

        Of other rooms than the one that was asked for nothing is known. `turns` are those behind the sample's prompt.
        """
        try:
            turn = read_turn(str(turns[-1]["content"]))
        except MalformedCallError:
            return None
        for reply in sample.meta.get("replies", ()):
            if _is_same(read_turn(reply["to"]), turn):
                return {"role": reply["role"], "content": reply["content"]}
        return "unknown" if [call.name for call in turn.calls] == ["find"] else None

    def verify(self, sample: Sample, answer: str) -> Score:
        """1 for the right action, whatever was thought; see the class for `parts`."""
        gold = read_turn(sample.answer or "")
        sort = "accuracy_inference" if sample.meta.get("inference") else "accuracy_copy"
        of_kind = f"accuracy_kind_{gold.kind}"
        try:
            turn = read_turn(answer)
        except MalformedCallError:
            parts = {"format": 0.0, "accuracy_kind": 0.0, of_kind: 0.0, sort: 0.0}
            return Score(0.0, parts | ({"recall": 0.0} if gold.calls else {}), {"reason": "malformed"})
        right, kind = float(_is_same(gold, turn)), float(gold.kind == turn.kind)
        parts = {"format": 1.0, "accuracy_kind": kind, of_kind: kind, sort: right}
        if turn.calls:
            parts["precision"] = _found(turn, gold) / len(turn.calls)
        if gold.calls:
            parts["recall"] = _found(turn, gold) / len(gold.calls)
        said = "\n".join(_call_text(call) for call in turn.calls) or turn.words
        return Score(right, parts, {"extracted": said, "reason": "found" if right else "wrong"})


def _called(scene: Scene) -> tuple[str, ...]:
    """The tools that are called."""
    return tuple(call.name for move in scene.moves for call in read_turn(move.action).calls)


def _is_same(gold: AgentTurn, turn: AgentTurn) -> bool:
    if gold.calls or turn.calls:
        return equal_calls(gold.calls, turn.calls)
    return same_words(gold.words, turn.words)


def _found(turn: AgentTurn, gold: AgentTurn) -> int:
    """How many calls of the one are among those of the other."""
    return sum(any(call.matches(other) for other in gold.calls) for call in turn.calls)


def _written(move: Move, style: str) -> str:
    return f"<think>{move.thought}</think>{move.action}" if style == "think" else move.action


def _context(problem: Turn) -> tuple[Message, ...]:
    """All that is said before the turn, without earlier thoughts."""
    tools = "\n".join(f"def {name}({', '.join(TOOLS[name])})" for name in problem.offered)
    said: list[Message] = [{"role": "system", "content": tools}, user(problem.scene.question)]
    for move, reply in zip(problem.scene.moves[: problem.place], problem.scene.replies, strict=False):
        said += [assistant(move.action), reply]
    return tuple(said)


def _call_text(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)})


def _call(name: str, **arguments: int) -> str:
    return f"{OPEN}{_call_text(ToolCall(name, arguments))}{CLOSE}"


# --- scenes -----------------------------------------------------------------------------------------------------------


def _copied(rng: Random, limit: int) -> Scene:
    """All arguments of a call are said."""
    room, number, day = _number(rng, limit), _number(rng, limit), _number(rng, limit)
    question, action = rng.choice(
        [
            (f"Walk {number} km.", _call("walk", km=number)),
            (f"Take the bus for {number} km.", _call("bus", km=number)),
            (f"Wait {number} minutes.", _call("wait", minutes=number)),
            (f"Book room {room} on day {day}.", _call("book", room=room, day=day)),
            (f"Pay {number} coins for room {room} on day {day}.", _call("pay", room=room, coins=number, day=day)),
        ]
    )
    return Scene(question, (Move(_COPIED, action),))


def _hours(rng: Random, limit: int) -> Scene:
    """Hours and minutes to minutes."""
    hours, minutes = rng.randint(2, 9), rng.randint(2, 59)
    work = f"{hours}*60={hours * 60}\n{hours * 60}+{minutes}={hours * 60 + minutes}"
    action = _call("wait", minutes=hours * 60 + minutes)
    return Scene(f"Wait {hours} hours and {minutes} minutes.", (Move(work, action, worked=True),))


def _days_later(rng: Random, limit: int) -> Scene:
    """A day and days to come."""
    later = rng.randint(2, limit // 10)
    today = rng.randint(2, limit - later)
    room, coins, day = _number(rng, limit), _number(rng, limit), today + later
    wish, action = rng.choice(
        [
            (f"Book room {room}", _call("book", room=room, day=day)),
            (f"Pay {coins} coins for room {room}", _call("pay", room=room, coins=coins, day=day)),
        ]
    )
    move = Move(f"{today}+{later}={day}", action, worked=True)
    return Scene(f"Today is day {today}. {wish} in {later} days.", (move,))


def _way(rng: Random, limit: int) -> Scene:
    """The tool by a limit: the bus from so many kilometres on."""
    km, least = _number(rng, limit), _number(rng, limit)
    sign = "<" if km < least else ">" if km > least else "="
    move = Move(f"{km}{sign}{least}", _call("walk" if km < least else "bus", km=km), worked=True)
    question = f"Go {km} km. From {least} km on take the bus, or else walk."
    return Scene(question, (move,), choice=("walk", "bus"))


def _lacking(rng: Random, limit: int) -> Scene:
    """An argument is not said, and has to be asked for."""
    room, coins, day = _number(rng, limit), _number(rng, limit), _number(rng, limit)
    book, pay = _call("book", room=room, day=day), _call("pay", room=room, coins=coins, day=day)
    question, lack, reply, action = rng.choice(
        [
            (f"Book room {room}.", "day", f"Day {day}.", book),
            (f"Book a room on day {day}.", "room", f"Room {room}.", book),
            (f"Pay {coins} coins for room {room}.", "day", f"Day {day}.", pay),
            (f"Pay {coins} coins on day {day}.", "room", f"Room {room}.", pay),
        ]
    )
    asked = Move(f"no {lack}", f"Which {lack}?")
    return Scene(question, (asked, Move(_COPIED, action)), (user(reply),))


def _asked_back(rng: Random, limit: int) -> Scene:
    """What a tool says is the answer, or has to be reckoned with."""
    left = rng.randint(2, limit // 10)
    room, today = _number(rng, limit), rng.randint(2, limit - left)
    reply = {"role": "tool", "content": str(today + left)}
    first = Move(_COPIED, _call("find", room=room))
    if rng.random() < 0.3:
        return Scene(f"When is room {room} free?", (first, Move(_COPIED, f"On day {today + left}.")), (reply,))
    last = Move(f"{today + left}-{today}={left}", f"In {left} days.", worked=True)
    return Scene(f"Today is day {today}. In how many days is room {room} free?", (first, last), (reply,))


def _number(rng: Random, limit: int) -> int:
    return rng.randint(2, limit)


_WEIGHTED: Mapping[Callable[[Random, int], Scene], int] = {
    _copied: 5,
    _hours: 3,
    _days_later: 4,
    _way: 3,
    _lacking: 4,
    _asked_back: 4,
}
_SCENES, _WEIGHTS = tuple(_WEIGHTED), tuple(_WEIGHTED.values())
