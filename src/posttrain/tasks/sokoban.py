"""Sokoban, one move at a time, where the question says what the moves are called (arXiv 2510.00237)."""

import re
from collections import deque
from collections.abc import Sequence as List
from dataclasses import replace
from random import Random
from typing import Any, Literal, NamedTuple

from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.rewards import Score
from posttrain.tasks.answers import answered, extract_answer, worked
from posttrain.tasks.generated import GeneratedTask, Part
from posttrain.tasks.spelling import unwrapped
from posttrain.tasks.task import Difficulty, tasks

Cell = tuple[int, int]
"""Row and column, from 0."""
Format = Literal["base", "cardinal", "emoji", "numerical", "alphabetical", "random", "empty", "words"]

MOVES: dict[str, Cell] = {"Up": (-1, 0), "Down": (1, 0), "Left": (0, -1), "Right": (0, 1)}
LABELS: dict[str, tuple[str, ...]] = {
    "base": ("Up", "Down", "Left", "Right"),
    "cardinal": ("North", "South", "West", "East"),
    "emoji": ("⬆️", "⬇️", "⬅️", "➡️"),
    "numerical": ("1", "2", "3", "4"),
    "alphabetical": ("A", "B", "C", "D"),
    "random": ("*", "&", "1", "M"),
    "empty": ("Up", "Down", "Left", "Right"),
}
"""What each format calls the moves, in the order of `MOVES`."""
EXPLAINED = ("numerical", "alphabetical", "random", "words")
"""Formats whose question also says which label is which move."""
_EVERYDAY = """
apple ball bear bell bird boat book bowl box bread brick bridge brush bus button cake camel camera candle car card
cat chair cheese clock cloud coat coin corn cow crown cup desk dog door drum duck egg fan farm fish flag flower
fork fox frog gate glass goat grape hammer hat heart hill horse house jar kite knife ladder lake lamp leaf lemon
lion lock map milk mirror moon mouse nail nest nose nut onion orange oven owl pan paper peach pear pen phone piano
pig pillow pipe plane plant plate pond rabbit radio rain ring river road robot rock roof rope rose sail salt sand
seed sheep ship shirt shoe snow soap sock spoon stamp star stone sun swan table tail tent tiger tower train tree
truck wall watch water whale wheel window wing wolf yard zebra
"""
WORDS = tuple(_EVERYDAY.split())
"""Everyday words, all different."""
SEARCHED = 20_000
"""States after which a room counts as too hard to keep."""


class Room(NamedTuple):
    """A square room: its walls, the cells where boxes have to go, the boxes and the player."""

    size: int
    walls: frozenset[Cell]
    targets: frozenset[Cell]
    boxes: frozenset[Cell]
    player: Cell

    def after(self, move: str) -> "Room | None":
        """The room behind a move; None where a wall or a second box is in the way."""
        rise, run = MOVES[move]
        ahead = (self.player[0] + rise, self.player[1] + run)
        boxes = self.boxes
        if ahead in self.walls:
            return None
        if ahead in boxes:
            behind = (ahead[0] + rise, ahead[1] + run)
            if behind in self.walls or behind in boxes:
                return None
            boxes = boxes - {ahead} | {behind}
        return self._replace(player=ahead, boxes=boxes)

    def drawn(self, between: str = "") -> str:
        """The room as text, a row on each line."""
        rows = (between.join(self._symbol((row, column)) for column in range(self.size)) for row in range(self.size))
        return "\n".join(rows)

    def _symbol(self, cell: Cell) -> str:
        if cell == self.player:
            return "S" if cell in self.targets else "P"
        if cell in self.boxes:
            return "√" if cell in self.targets else "X"
        return "#" if cell in self.walls else "O" if cell in self.targets else "_"


class Position(NamedTuple):
    """One problem: a room on the way to its solution, and the moves that come next on a shortest way."""

    room: Room
    moves: tuple[str, ...]


@tasks.register("sokoban")
class SokobanTask(GeneratedTask[Position]):
    """Say the next move that pushes every box (X) onto a target (O).

    A room is drawn at random and solved by breadth-first search; the problem is some state on the shortest way. Right
    is the move of that way. Styles: "direct" (the move's label alone), "steps" (where player, box and target are, and
    the direction, before the label). `harder` rooms have the side 8. Options:

    - `size`: side of the room, walls included (default 6). `boxes`: how many. `horizon`: how many moves to say.
    - `labels`: what moves are called; of several formats each after the first gets an equal share of the problems, and
      the first one the rest. "words" draws four labels for every problem from `words` (default: everyday words).
    - `accepts`: a probe: only this format's labels are right, whatever the question says.
    - `between`: what stands between cells (the paper's code: tabs).

    `format_validity` of an evaluation is the share of answers in the labels that the question announces. The paper's
    rooms are made by walks and reverse play; these by random walls.
    """

    name = "sokoban"
    styles = ("direct", "steps")

    def __init__(
        self,
        *,
        size: int | None = None,
        boxes: int = 1,
        horizon: int = 1,
        labels: list[Format] | None = None,
        words: list[str] | None = None,
        accepts: Format | None = None,
        between: str = "",
        part: Part = "any",
    ) -> None:
        super().__init__(part=part)
        if size is not None and not 5 <= size <= 10:
            raise UserError(f"task 'sokoban': size is {size}; give 5 to 10, walls included")
        if boxes < 1 or horizon < 1:
            raise UserError(f"task 'sokoban': boxes is {boxes} and horizon {horizon}; give 1 or more of each")
        if labels == []:
            raise UserError("task 'sokoban': labels is empty; give at least one format, such as base")
        pool = tuple(words or WORDS)
        if len({word.lower() for word in pool}) < max(4, len(pool)):
            raise UserError("task 'sokoban': words needs four words or more, all different (case does not count)")
        self.size, self.boxes, self.horizon = size, boxes, horizon
        self.formats: tuple[str, ...] = tuple(labels or ("base",))
        self.pool, self.accepts, self.between = pool, accepts, between

    def samples(
        self, count: int, seed: int, *, difficulty: Difficulty = "in", style: str | None = None
    ) -> list[Sample]:
        """As `GeneratedTask`; the formats of labels are divided over the `count` problems (see `allocate`)."""
        found = super().samples(count, seed, difficulty=difficulty, style=style)
        formats = allocate(count, self.formats)
        return [self._labelled(sample, chosen) for sample, chosen in zip(found, formats, strict=True)]

    def problem(self, rng: Random, difficulty: Difficulty) -> Position:
        """Draw rooms until one can be solved, and a state on its way."""
        size = self.size or {"in": 6, "harder": 8}[difficulty]
        while True:
            room = _room(rng, size, self.boxes)
            way = solve(room)
            if way is None or len(way) < self.horizon:
                continue
            done = rng.randint(0, len(way) - self.horizon)
            for move in way[:done]:
                room = _moved(room, move)
            return Position(room, way[done : done + self.horizon])

    def prompt(self, problem: Position) -> str:
        """The room; `samples` puts it behind the line that names the moves."""
        return problem.room.drawn(self.between)

    def demonstration(self, problem: Position, style: str) -> str:
        """The moves by their first names; `samples` puts the labels in."""
        answer = ",".join(problem.moves)
        if style == "direct":
            return answered(answer)
        room = problem.room
        boxes = " ".join(f"X{row},{column}" for row, column in sorted(room.boxes))
        targets = " ".join(f"O{row},{column}" for row, column in sorted(room.targets))
        return worked(f"P{room.player[0]},{room.player[1]} {boxes} {targets} {answer}", answer)

    def answer(self, problem: Position) -> str:
        """The moves of a shortest way: `Up`."""
        return ",".join(problem.moves)

    def details(self, problem: Position) -> dict[str, Any]:
        """`size` and `boxes` of the room."""
        return {"size": problem.room.size, "boxes": len(problem.room.boxes)}

    def verify(self, sample: Sample, answer: str) -> Score:
        """1 if the answer begins with the moves of `sample.answer`, in the labels that count; case does not.

        `parts`: "format" (only labels that the question announces), "reward" (that of the paper's code for one fixed
        format: 1 right, 0.1 the right number of known labels, else 0).
        """
        extraction = extract_answer(answer)
        if extraction.value is None:
            return Score(0.0, {"format": 0.0, "reward": 0.0}, {"reason": extraction.reason})
        said = [_folded(word) for word in re.split(r"[,\s]+", unwrapped(extraction.value))]
        announced = _moves_of(sample.meta.get("labels", LABELS["base"]))
        counted = _moves_of(sample.meta.get("accepted", sample.meta.get("labels", LABELS["base"])))
        wanted = (sample.answer or "").split(",")
        made = [counted.get(word) for word in said]
        right = made[: len(wanted)] == wanted
        known = len(said) == len(wanted) and None not in made
        parts = {"format": float(all(word in announced for word in said)), "reward": 1.0 if right else 0.1 * known}
        reason = "found" if right else "wrong" if known else "unknown_label" if None in made else "wrong_length"
        return Score(float(right), parts, {"extracted": extraction.value, "reason": reason})

    def _labelled(self, sample: Sample, chosen: str) -> Sample:
        """The sample with the names that its format gives the moves."""
        labels = LABELS.get(chosen) or tuple(Random(f"{sample.prompt_text} words").sample(self.pool, 4))
        names = dict(zip(MOVES, labels, strict=True))
        lines = [] if chosen == "empty" else [f"Answers: {', '.join(labels)}."]
        if chosen in EXPLAINED:
            lines.append(", ".join(f"{label} is {move}" for move, label in names.items()) + ".")
        head, tag, _ = sample.response_text.rpartition("<answer>")
        said = ",".join(names[move] for move in (sample.answer or "").split(","))
        response = {**sample.response[0], "content": f"{head}{tag}{said}</answer>"}
        meta = {**sample.meta, "format": chosen, "labels": list(labels)}
        if self.accepts is not None:
            meta["accepted"] = list(LABELS[self.accepts])
        prompt = "\n".join(["Push X to O.", *lines, sample.prompt_text])
        return replace(sample, prompt=(user(prompt),), response=(response,), meta=meta)


def allocate(count: int, formats: List[str]) -> list[str]:
    """A format for each of `count` problems: floor(count / len(formats)) for each after the first, the rest for that.

    Permuted with seed 42. In the code of the paper, "mixed".
    """
    each = count // len(formats)
    new = [name for name in formats[1:] for _ in range(each)]
    found = [*new, *[formats[0]] * (count - len(new))]
    Random(42).shuffle(found)
    return found


def solve(room: Room) -> tuple[str, ...] | None:
    """A shortest way to put every box on a target; None where there is none, or none within `SEARCHED` states.

    Of several, the one whose first different move comes first in `MOVES`.
    """
    came: dict[tuple[Cell, frozenset[Cell]], tuple[Room, str] | None] = {(room.player, room.boxes): None}
    waiting = deque([room])
    while waiting and len(came) < SEARCHED:
        here = waiting.popleft()
        if here.boxes == here.targets:
            way = []
            while (step := came[here.player, here.boxes]) is not None:
                here, move = step
                way.append(move)
            return tuple(reversed(way))
        for move in MOVES:
            there = here.after(move)
            if there is not None and (there.player, there.boxes) not in came:
                came[there.player, there.boxes] = (here, move)
                waiting.append(there)
    return None


def _moved(room: Room, move: str) -> Room:
    after = room.after(move)
    assert after is not None  # moves of a solution can be made
    return after


def _room(rng: Random, size: int, boxes: int) -> Room:
    """Walls around, a few inside, and boxes that do not lie on targets yet."""
    inside = [(row, column) for row in range(1, size - 1) for column in range(1, size - 1)]
    border = {(row, column) for row in range(size) for column in range(size)} - set(inside)
    rng.shuffle(inside)
    walls = rng.randint(0, len(inside) // 5)
    inner, free = inside[:walls], inside[walls:]
    targets, crates, player = free[:boxes], free[boxes : 2 * boxes], free[2 * boxes]
    return Room(size, frozenset(border | set(inner)), frozenset(targets), frozenset(crates), player)


def _moves_of(labels: List[str]) -> dict[str, str]:
    return {_folded(label): move for label, move in zip(labels, MOVES, strict=True)}


def _folded(label: str) -> str:
    """Case aside, and whether an arrow is to be drawn as text or in colour (Unicode's variation selectors)."""
    return label.casefold().rstrip("\ufe0e\ufe0f")
