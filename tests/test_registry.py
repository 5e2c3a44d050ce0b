from collections.abc import Callable
from typing import Any, Literal

import pytest

from posttrain.errors import UserError, nearest
from posttrain.registry import Registry

Piece = Callable[..., Any]


@pytest.fixture
def pieces() -> Registry[Piece]:
    registry: Registry[Piece] = Registry("reward")

    @registry.register("exact")
    def exact(sample: str, completion: str) -> float:
        return float(sample == completion)

    @registry.register("length")
    def length(sample: str, *, target: int, slope: float = 0.5, unit: Literal["tokens", "words"] = "tokens") -> float:
        return target * slope

    @registry.register("table")
    class Table:
        def __init__(self, *, path: str | None = None, columns: list[str] = ["a"]) -> None:  # noqa: B006
            self.path = path

    return registry


def test_a_piece_is_found_by_its_name(pieces: Registry[Piece]) -> None:
    assert pieces["exact"]("4", "4") == 1.0
    assert list(pieces) == ["exact", "length", "table"]
    assert "exact" in pieces
    assert "exakt" not in pieces


def test_options_are_checked_converted_and_filled_in(pieces: Registry[Piece]) -> None:
    assert pieces.options("exact") == ("exact", {})
    assert pieces.options({"name": "exact"}) == ("exact", {})
    expected = {"target": 5, "slope": 2.0, "unit": "words"}
    assert pieces.options({"name": "length", "target": 5, "slope": 2, "unit": "words"}) == ("length", expected)
    assert pieces.options({"name": "length", "target": 5})[1] == {"target": 5, "slope": 0.5, "unit": "tokens"}
    assert pieces.options("table")[1] == {"path": None, "columns": ["a"]}


def test_what_a_recipe_says_is_left_as_it_is(pieces: Registry[Piece]) -> None:
    spec = {"name": "length", "target": 5}
    pieces.options(spec)
    assert spec == {"name": "length", "target": 5}


def test_a_mutable_default_is_nobodys_to_change(pieces: Registry[Piece]) -> None:
    pieces.options("table")[1]["columns"].append("b")
    pieces.defaults("table")["columns"].append("c")
    assert pieces.options("table")[1]["columns"] == ["a"]
    assert pieces.defaults("table")["columns"] == ["a"]


def test_defaults_leave_out_options_that_must_be_given(pieces: Registry[Piece]) -> None:
    assert pieces.defaults("length") == {"slope": 0.5, "unit": "tokens"}
    assert pieces.defaults("exact") == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exakt", "unknown reward 'exakt': did you mean 'exact'?"),
        ("zzz", "unknown reward 'zzz': known: exact, length, table"),
        ("mine.py:zzz", r"say imports: \[FILE.py\] at the top, and here the name that it registers; known: exact"),
        ({"target": 5}, r"reward \{'target': 5\} has no 'name'; known: exact, length, table"),
        ({"name": 3}, "has no 'name'"),
        ({"name:exact": None}, "has no 'name'; YAML wants a space behind a colon; known"),
        ({"name": "length", "targt": 5}, "unknown option 'targt' of reward 'length': did you mean 'target'?"),
        ({"name": "length", 7: 5}, "unknown option '7' of reward 'length': known: slope, target, unit"),
        ({"name": "exact", "sample": "x"}, "unknown option 'sample' of reward 'exact': known: none"),
        ("length", "reward 'length': option 'target' is missing$"),
        ({"name": "length", "target": "far"}, "reward 'length': option 'target' has to be a whole number, found .far"),
        ({"name": "length", "target": 1.5}, "option 'target' has to be a whole number, found 1.5"),
        ({"name": "length", "target": 5, "unit": "bytes"}, "option 'unit' has to be 'tokens' or 'words', found .bytes"),
        ({"name": "table", "columns": ["a", 3]}, r"option 'columns\.1' has to be text, found 3"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(pieces: Registry[Piece], spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pieces.options(spec)


def test_asking_for_an_unknown_piece_names_the_nearest(pieces: Registry[Piece]) -> None:
    with pytest.raises(UserError, match=r"did you mean 'table'\?"):
        pieces["tabel"]
    with pytest.raises(UserError, match="unknown reward"):
        pieces.defaults("tabel")


def test_a_name_stands_for_one_piece(pieces: Registry[Piece]) -> None:
    with pytest.raises(ValueError, match="reward 'exact' is registered twice"):
        pieces.register("exact")(lambda sample: 0.0)


def test_an_option_needs_a_type(pieces: Registry[Piece]) -> None:
    def untyped(sample, *, target=3):  # type: ignore[no-untyped-def]
        return target

    with pytest.raises(TypeError, match="option 'target' needs a type annotation"):
        pieces.register("untyped")(untyped)
    assert "untyped" not in pieces


def test_no_option_is_called_name(pieces: Registry[Piece]) -> None:
    def named(sample: str, *, name: str = "x") -> str:
        return name

    with pytest.raises(TypeError, match="no option can be called 'name'"):
        pieces.register("named")(named)


def test_the_nearest_name_is_offered_or_all_of_them() -> None:
    assert nearest("sequnces", ["tokens", "sequences"]) == "did you mean 'sequences'?"
    assert nearest("qqq", ["b", "a"]) == "known: a, b"
    assert nearest("qqq", []) == "known: none"
