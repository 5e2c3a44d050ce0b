"""Curation functions of recipes."""

import pytest

from posttrain.curation import curations
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError


def sample(question: str, answer: str = "1") -> Sample:
    return Sample((user(question),), (assistant(answer),))


ROWS = [sample(f"question {number}") for number in range(100)]


def curated(name, samples=ROWS, seed=0, **options):
    kind, checked = curations.options({"name": name, **options})
    return curations[kind](samples, seed, **checked)


def test_equal_samples_are_kept_once_and_equal_questions_by_prompt():
    rows = [sample("a", "1"), sample("a", "2"), sample("a", "1"), sample("b")]
    assert curated("deduplicate", rows) == [rows[0], rows[1], rows[3]]
    assert curated("deduplicate", rows, by="prompt") == [rows[0], rows[3]]


def test_parts_are_disjoint_and_do_not_depend_on_the_order():
    parts = [curated("part", sizes=[0.5, 0.25, 0.25], index=index) for index in range(3)]
    ids = [{row.id for row in part} for part in parts]
    assert [len(part) for part in ids] == [50, 25, 25]
    assert len(set.union(*ids)) == 100
    again = curated("part", samples=ROWS[::-1], sizes=[0.5, 0.25, 0.25], index=1)
    assert {row.id for row in again} == ids[1]


@pytest.mark.parametrize(("overlap", "shared"), [(0.0, 0), (0.3, 9), (1.0, 30)])
def test_two_parts_overlap_as_prescribed(overlap, shared):
    a, b = (curated("overlapping", size_a=40, size_b=30, overlap=overlap, side=side) for side in "ab")
    assert (len(a), len(b)) == (40, 30)
    assert len({row.id for row in a} & {row.id for row in b}) == shared


def test_a_draw_keeps_the_order_and_is_a_function_of_the_seed():
    drawn = curated("sample", count=10)
    assert [ROWS.index(row) for row in drawn] == sorted(ROWS.index(row) for row in drawn)
    assert drawn == curated("sample", count=10)
    assert drawn != curated("sample", count=10, seed=1)


def test_an_index_without_a_part_is_refused():
    with pytest.raises(UserError, match="index"):
        curated("part", sizes=[0.5, 0.5], index=2)


def test_so_many_of_each_question_are_kept() -> None:
    answers = [sample(f"question {row % 2}", f"answer {row}") for row in range(6)]
    assert curated("per_prompt", answers, count=2) == answers[:4]


def test_the_shortest_answers_of_each_question_are_kept() -> None:
    answers = [sample("a", "long one"), sample("b", "x"), sample("a", "short"), sample("a", "brief"), sample("b", "xy")]
    assert curated("per_prompt", answers, count=1, shortest=True) == answers[1:3]
    assert curated("per_prompt", answers, count=2, shortest=True) == answers[1:]
