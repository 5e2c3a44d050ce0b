"""Which of the sampled answers the report shows, side by side for the same problem.

The files may be larger than memory: a first pass keeps where each answer lies, a second reads the few that are shown.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.reporting.formats import is_number, number
from posttrain.reporting.reading import Run, json_lines
from posttrain.rewards import is_right

KINDS = ("fixed", "broken", "right", "wrong", "unscored")
"""Became right, became wrong, right and wrong from first to last, and without a score at either end."""

SHOWN_OF_A_KIND = 8
SHOWN_OF_A_STAGE = 12
LONGEST = 20_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer lies in its file, and what is needed to choose it. `value` is None where it has no score."""

    path: Path
    offset: int
    draw: int
    step: float
    value: float | None


@dataclass(frozen=True)
class Folded:
    """A text whose middle is folded away when it is long. `lost`: how many characters of the middle are left out."""

    head: str
    middle: str = ""
    tail: str = ""
    lost: int = 0


@dataclass(frozen=True)
class Answer:
    """One answer in a card. `mark`: right, wrong, partly or unscored; `facts`: what is known of it besides the text."""

    title: str
    mark: str
    text: Folded
    facts: list[str]


@dataclass(frozen=True)
class Card:
    """One problem with its answers, oldest first. `kind` is one of `KINDS`."""

    sample_id: str
    kind: str
    task: str
    prompt: Folded
    expected: str
    answers: list[Answer]


@dataclass(frozen=True)
class Gallery:
    """Cards under one title. `counts`: kind -> how many problems there are, of which only some have a card.

    `capped`: the most cards of one kind, 0 where kinds did not choose.
    """

    title: str
    cards: list[Card]
    counts: dict[str, int]
    problems: int
    capped: int


Columns = dict[str, list[tuple[str, list[Place]]]]
"""sample id -> (title, draws) of each answer to be put side by side, oldest first."""


def galleries(run: Run) -> list[Gallery]:
    """Evaluations of the same problems side by side; then what each other stage drew, earliest beside latest step.

    Adds what could not be read to `run.notes`.
    """
    shown, groups = [], list[tuple[list[str], Columns]]()
    for stage, path in run.answers.items():
        places = _places(path, run.notes)
        if run.stages.get(stage, {}).get("kind") == "evaluate":
            _join(groups, stage, places)
        elif places:
            shown.append(_gallery(f"During {stage}", _by_step(places), SHOWN_OF_A_STAGE))
    compared = [_gallery(" → ".join(stages), _paired(stages, columns), None) for stages, columns in groups]
    return compared + shown


def _places(path: Path, notes: list[str]) -> dict[str, dict[tuple[float, int], Place]]:
    """sample id -> (step, draw) -> place; an answer that was written again after a resume counts once."""
    found: dict[str, dict[tuple[float, int], Place]] = {}
    for offset, row in json_lines(path, notes):
        step, draw, value = row.get("step"), row.get("draw"), row.get("value")
        place = Place(
            path=path,
            offset=offset,
            draw=draw if isinstance(draw, int) else 0,
            step=float(step) if is_number(step) else 0.0,
            value=float(value) if is_number(value) and not row.get("error") else None,
        )
        found.setdefault(str(row.get("sample_id", "")), {})[place.step, place.draw] = place
    return found


def _join(
    groups: list[tuple[list[str], Columns]], stage: str, places: dict[str, dict[tuple[float, int], Place]]
) -> None:
    """Add an evaluation to the first group that it shares problems with, or open a new one."""
    stages, columns = next((group for group in groups if group[1].keys() & places.keys()), ([], {}))
    if not places:
        return
    if not stages:
        groups.append((stages, columns))
    stages.append(stage)
    for sample_id, draws in places.items():
        columns.setdefault(sample_id, []).append((stage, [draws[key] for key in sorted(draws)]))


def _paired(stages: list[str], columns: Columns) -> Columns:
    """Only the problems that the first and the latest evaluation both have: the latest may have got half-way."""
    both = {
        sample_id: answers
        for sample_id, answers in columns.items()
        if answers[0][0] == stages[0] and answers[-1][0] == stages[-1]
    }
    return both or columns


def _by_step(places: dict[str, dict[tuple[float, int], Place]]) -> Columns:
    """The earliest and the latest answers to each problem; problems that came up most often first."""
    columns: Columns = {}
    for sample_id, draws in places.items():
        steps: dict[float, list[Place]] = {}
        for step, draw in sorted(draws):
            steps.setdefault(step, []).append(draws[step, draw])
        ends = [min(steps), max(steps)] if len(steps) > 1 else list(steps)
        columns[sample_id] = [(f"step {number(step)}", steps[step]) for step in ends]
    often = sorted(columns, key=lambda sample_id: -len({step for step, _ in places[sample_id]}))
    if all(len(answers) == 1 for answers in columns.values()):
        often = often[:: max(1, len(often) // SHOWN_OF_A_STAGE)]
        return {sample_id: columns[sample_id] for sample_id in often}
    return {sample_id: columns[sample_id] for sample_id in often if len(columns[sample_id]) > 1}


def _gallery(title: str, columns: Columns, most: int | None) -> Gallery:
    """At most `most` cards, or `SHOWN_OF_A_KIND` of each kind, in the order of the problems."""
    counts = dict.fromkeys(KINDS, 0)
    cards: list[Card] = []
    for sample_id, answers in columns.items():
        kind = _kind([draws[0].value for _, draws in answers])
        counts[kind] += 1
        if len(cards) < most if most else counts[kind] <= SHOWN_OF_A_KIND:
            cards.append(_card(sample_id, kind, answers))
    counts = {kind: count for kind, count in counts.items() if count}
    return Gallery(title, cards, counts, len(columns), 0 if most else SHOWN_OF_A_KIND)


def _kind(values: list[float | None]) -> str:
    first, last = values[0], values[-1]
    if first is None or last is None:
        return "unscored"
    if is_right(first) == is_right(last):
        return "right" if is_right(last) else "wrong"
    return "fixed" if is_right(last) else "broken"


def _card(sample_id: str, kind: str, answers: Iterable[tuple[str, list[Place]]]) -> Card:
    rows = [(title, draws, _read(draws[0])) for title, draws in answers]
    last = rows[-1][2]
    return Card(
        sample_id=sample_id,
        kind=kind,
        task=str(last.get("task") or ""),
        prompt=folded(_prompt(last.get("prompt"))),
        expected=str(last["expected"]) if last.get("expected") is not None else "",
        answers=[_answer(title, draws, row) for title, draws, row in rows],
    )


def _read(place: Place) -> dict[str, Any]:
    with place.path.open("rb") as file:
        file.seek(place.offset)
        row: dict[str, Any] = json.loads(file.readline())
    return row


def _prompt(prompt: Any) -> str:
    """A prompt given as text, or as messages: the roles are named where there is more than one turn."""
    if not isinstance(prompt, list):
        return str(prompt or "")
    turns = [turn if isinstance(turn, Mapping) else {"content": turn} for turn in prompt]
    if len(turns) == 1:
        return str(turns[0].get("content") or "")
    return "\n\n".join(f"{turn.get('role', '')}: {turn.get('content') or ''}" for turn in turns)


def _answer(title: str, draws: list[Place], row: Mapping[str, Any]) -> Answer:
    value = draws[0].value
    mark = "unscored" if value is None else "right" if is_right(value) else "wrong" if value <= 0 else "partly"
    return Answer(title, mark, folded(str(row.get("text") or "")), list(_facts(draws, row)))


def _facts(draws: list[Place], row: Mapping[str, Any]) -> Iterable[str]:
    value = draws[0].value
    if row.get("error"):
        yield f"not scored: {row['error']}"
    elif value is not None and value not in (0.0, 1.0):
        yield f"value {number(value)}"
    parts = row["parts"] if isinstance(row.get("parts"), Mapping) else {}
    yield from (f"{name} {number(part)}" for name, part in parts.items() if is_number(part))
    info = row["info"] if isinstance(row.get("info"), Mapping) else {}
    yield from (f"{name}: {str(fact)[:120]}" for name, fact in info.items() if fact not in (None, "", [], {}))
    if is_number(row.get("tokens")):
        yield f"{number(row['tokens'])} tokens"
    if row.get("finish_reason") == "length":
        yield "cut off at the length limit"
    if is_number(row.get("logprob")):
        yield f"logprob {number(row['logprob'])}"
    scored = [place.value for place in draws if place.value is not None]
    if len(draws) > 1 and scored:
        yield f"right in {sum(map(is_right, scored))} of {len(scored)} draws"


def folded(text: str, open_length: int = 900) -> Folded:
    """Fold the middle of a long text away: its start says how it goes about it, its end holds the answer."""
    if len(text) <= open_length:
        return Folded(text)
    start, end = open_length * 6 // 10, len(text) - open_length * 3 // 10
    start = text.rfind("\n", start // 2, start) + 1 or start
    end = text.find("\n", end, -1) + 1 or end
    middle = text[start:end]
    return Folded(text[:start], middle[:LONGEST], text[end:], lost=max(0, len(middle) - LONGEST))
