"""Numbers of sheet 12; the solver against a plain search of all ways."""

from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.tasks.sokoban import LABELS, MOVES, WORDS, Room, SokobanTask, _room, allocate, solve

PICTURE = "######\n#P___#\n#_X__#\n#____#\n#__O_#\n######"


def room_of(picture: str) -> Room:
    rows = picture.split("\n")
    cells = {(r, c): symbol for r, row in enumerate(rows) for c, symbol in enumerate(row)}
    found = {symbol: frozenset(cell for cell in cells if cells[cell] in kinds) for symbol, kinds in KINDS.items()}
    return Room(len(rows), found["#"], found["O"], found["X"], next(iter(found["P"])))


KINDS = {"#": "#", "O": "O√S", "X": "X√", "P": "PS"}


def score(answer: str, labels: str = "cardinal", truth: str = "Up") -> tuple[float, float]:
    sample = Sample(prompt=(), answer=truth, task="sokoban", meta={"labels": list(LABELS[labels])})
    parts = SokobanTask().verify(sample, f"<answer>{answer}</answer>").parts
    return parts["reward"], parts["format"]


@pytest.mark.parametrize(
    ("answer", "reward", "valid"),
    [("North", 1, 1), ("Up", 0, 0), ("South", 0.1, 1), ("north East", 1, 1), ("South East", 0, 1), ("North Up", 1, 0)],
)
def test_scores_are_those_of_sheet_12(answer: str, reward: float, valid: float) -> None:
    assert score(answer) == (reward, valid)


def test_announced_labels_are_matched_before_any_other_meaning_of_a_digit() -> None:
    assert score("1", "random", truth="Left")[0] == 1
    assert score("1", "random", truth="Up")[0] == 0.1


def test_fewer_moves_than_asked_for_are_wrong() -> None:
    assert score("North", truth="Up,Left")[0] == 0
    assert score("North West East", truth="Up,Left")[0] == 1


@pytest.mark.parametrize(
    ("count", "shares"),
    [(10, {"base": 4, "a": 2, "b": 2, "c": 2}), (4000, dict.fromkeys(["base", "a", "b", "c"], 1000))],
)
def test_formats_are_allocated_as_in_sheet_12(count: int, shares: dict[str, int]) -> None:
    found = allocate(count, ["base", "a", "b", "c"])
    assert {name: found.count(name) for name in shares} == shares
    assert found == allocate(count, ["base", "a", "b", "c"])
    assert found != sorted(found)


def test_everyday_words_are_all_different() -> None:
    assert len(set(WORDS)) == len(WORDS) > 130


def test_a_room_is_drawn_as_it_is() -> None:
    assert room_of(PICTURE).drawn() == PICTURE
    on = room_of("#####\n#S√_#\n#___#\n#X__#\n#####")
    assert on.drawn() == "#####\n#S√_#\n#___#\n#X__#\n#####"
    assert on.drawn("\t").split("\n")[1] == "#\tS\t√\t_\t#"


def test_boxes_are_pushed_but_not_pulled_and_not_two_at_once() -> None:
    room = room_of("######\n#PX__#\n#XX_O#\n#__O_#\n#_O__#\n######")
    right = room.after("Right")
    assert right is not None
    assert right.drawn().split("\n")[1] == "#_PX_#"
    back = right.after("Left")
    assert back is not None
    assert back.drawn().split("\n")[1] == "#P_X_#"
    assert room.after("Up") is None
    assert room_of("######\n#PXX_#\n#O_O_#\n#____#\n#____#\n######").after("Right") is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_the_solver_finds_a_way_as_short_as_any(seed: int) -> None:
    room = _room(Random(seed), 5, 1)
    way = solve(room)
    length = 6 if way is None else min(len(way) - 1, 6)
    for moves in product(MOVES, repeat=max(0, length)):  # no shorter way
        here: Room | None = room
        for move in moves:
            here = here.after(move) if here else None
            assert here is None or here.boxes != here.targets
    if way is not None:
        for move in way:
            room = room.after(move) or pytest.fail("a move of the solution cannot be made")
        assert room.boxes == room.targets


def test_a_box_in_a_corner_cannot_be_solved() -> None:
    assert solve(room_of("#####\n#X__#\n#_P_#\n#__O#\n#####")) is None


@pytest.mark.parametrize(
    "labels", [*([name] for name in LABELS), ["words"], ["base", "cardinal", "numerical"]], ids=str
)
def test_demonstrations_are_right_in_both_styles(labels: Any) -> None:
    task = SokobanTask(labels=labels)
    for style in task.styles:
        for sample in task.samples(12, 1, style=style):
            score = task.verify(sample, sample.response_text)
            assert score.value == 1
            assert score.parts == {"format": 1, "reward": 1}


def test_only_names_change_with_the_labels_and_the_grid_stays() -> None:
    base, words = (SokobanTask(labels=[name]).samples(30, 5) for name in ("base", "words"))  # type: ignore[list-item]
    drawn = set()
    for one, other in zip(base, words, strict=True):
        back = dict(zip(other.meta["labels"], MOVES, strict=True))
        assert one.prompt_text.split("\n")[2:] == other.prompt_text.split("\n")[3:]
        assert one.answer == other.answer == back[other.response_text[8:-9]]
        assert len(set(other.meta["labels"])) == 4
        drawn.add(tuple(other.meta["labels"]))
    assert len(drawn) == 30


def test_a_probe_announces_labels_that_do_not_count() -> None:
    task = SokobanTask(labels=["numerical"], accepts="base")
    sample = task.samples(1, 0)[0]
    assert "1 is Up" in sample.prompt_text
    told = task.verify(sample, sample.response_text)
    trained = task.verify(sample, f"<answer>{sample.answer}</answer>")
    assert (told.value, told.parts["format"]) == (0, 1)
    assert (trained.value, trained.parts["format"]) == (1, 0)


def test_larger_rooms_and_more_boxes_are_solved() -> None:
    for options in ({"size": 8}, {"boxes": 2}, {"size": 10, "boxes": 2}, {"horizon": 3}):
        for sample in SokobanTask(**options).samples(4, 0):  # type: ignore[arg-type]
            assert (sample.answer or "").count(",") == options.get("horizon", 1) - 1
            assert sample.meta["size"] == options.get("size", 6)


@pytest.mark.parametrize(
    "options",
    [{"size": 4}, {"boxes": 0}, {"horizon": 0}, {"labels": []}, {"words": ["a", "b", "c"]}, {"words": list("aAbcd")}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        SokobanTask(**options)
