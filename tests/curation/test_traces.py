"""Which traces of a weak reasoner are imitated (W2SR, sheet 5)."""

from typing import Any

import pytest

from posttrain.curation import curate
from posttrain.curation.traces import most_repeated
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError


def trace(place: int, found: str | None, gold: str) -> Sample:
    """As a generate stage writes it: pred, gold."""
    meta = {"value": float(found == gold), "final_answer": found}
    return Sample((user(f"question {place}"),), (assistant(f"<think>...</think>{found}"),), answer=gold, meta=meta)


RECORDS = [trace(0, "5", "5"), trace(1, "6", "4"), trace(2, None, "2"), trace(3, "7", "7")]
"""Check 1 of the sheet."""


def places(samples: list[Sample], *steps: str | dict[str, Any]) -> list[int]:
    rows = samples
    for step in steps:
        rows = curate(step, rows, 0, {})
    return [int(row.prompt_text.removeprefix("question ")) for row in rows]


def test_right_and_wrong_traces_are_disjoint_and_together_all() -> None:
    right = places(RECORDS, {"name": "verified", "keep": "right"})
    wrong = places(RECORDS, {"name": "verified", "keep": "wrong"})
    assert (right, wrong) == ([0, 3], [1, 2])


def test_of_a_teacher_that_is_always_right_nothing_is_wrong() -> None:
    """Check 6: the stage that is left without a sample stops the run (tests/recipes/test_w2sr.py)."""
    always = [trace(0, "5", "5"), trace(3, "7", "7")]
    assert places(always, {"name": "verified", "keep": "right"}) == [0, 3]
    assert places(always, {"name": "verified", "keep": "wrong"}) == []


def test_traces_without_an_answer_may_be_dropped_first() -> None:
    assert places(RECORDS, "with_answer", {"name": "verified", "keep": "wrong"}) == [1]


def test_the_most_repeated_run_of_words_is_counted() -> None:
    assert most_repeated("a b a b a b", 2) == 3
    assert most_repeated("7*2=14 7*2=14", 5) == 2
    assert most_repeated("too short", 3) == 0


def test_looping_traces_are_dropped_whether_right_or_wrong() -> None:
    steps = "1+2=3\n3+4=7\n"
    texts = {"once": steps, "twice": steps * 2, "for ever": steps * 40}
    rows = [Sample((user(name),), (assistant(text),)) for name, text in texts.items()]
    assert [row.prompt_text for row in curate("without_loops", rows, 0, {})] == ["once", "twice"]
    strict = curate({"name": "without_loops", "most": 1}, rows, 0, {})
    assert [row.prompt_text for row in strict] == ["once"]


@pytest.mark.parametrize("step", ["with_answer", {"name": "verified", "keep": "right"}])
def test_answers_that_nobody_has_scored_are_refused(step: str | dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no sample says what its answer is worth"):
        curate(step, [Sample((user("a"),), (assistant("b"),))], 0, {})
