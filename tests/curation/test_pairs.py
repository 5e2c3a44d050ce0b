"""Preference data from verified answers."""

from collections import Counter
from typing import Any

import pytest

from posttrain.curation import curations
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError


def answer(question: str, text: str, value: float | None) -> Sample:
    meta = {"style": "steps"} if value is None else {"style": "steps", "value": value, "draw": 0, "source_id": "x"}
    return Sample((user(question),), (assistant(text),), answer="1", task="chains", meta=meta)


ANSWERS = [
    *(answer("both", text, 1.0) for text in "ab"),
    *(answer("both", text, 0.0) for text in "cde"),
    answer("right", "a", 1.0),
    answer("wrong", "a", 0.5),
    answer("one", "a", 1.0),
    answer("one", "b", 0.0),
]


def curated(name: str, samples: list[Sample], seed: int = 0, **options: Any) -> list[Sample]:
    kind, checked = curations.options({"name": name, **options})
    return curations[kind](samples, seed, **checked)


def sides(pairs: list[Sample]) -> list[tuple[str, str, str]]:
    return [(pair.prompt_text, pair.response_text, pair.rejected[0]["content"]) for pair in pairs]


def test_a_pair_is_a_right_and_a_wrong_answer_to_one_question() -> None:
    found = curated("pairs", ANSWERS)
    assert [question for question, _, _ in sides(found)] == ["both", "one"]
    assert sides(found)[0][1] in "ab"
    assert sides(found)[0][2] in "cde"
    assert sides(found)[1] == ("one", "a", "b")
    assert found[1].answer == "1"
    assert dict(found[1].meta) == {"style": "steps"}


def test_a_question_gives_so_many_pairs_and_none_twice() -> None:
    assert len(curated("pairs", ANSWERS, per_prompt=4)) == 5
    every = sides(curated("pairs", ANSWERS, per_prompt=100))
    assert Counter(question for question, _, _ in every) == {"both": 6, "one": 1}
    assert len(set(every)) == 7


def test_pairs_are_a_function_of_the_seed() -> None:
    drawn = {tuple(sides(curated("pairs", ANSWERS, seed))) for seed in (0, 0, 1, 2, 3)}
    assert 1 < len(drawn) < 5


def test_demonstrations_stand_for_right_answers_only_where_asked() -> None:
    samples = [answer("wrong", "shown", None), *ANSWERS[5:7]]
    assert curated("pairs", samples) == []
    assert sides(curated("pairs", samples, demonstrations=True)) == [("wrong", "shown", "a")]


def test_answers_that_nobody_verified_make_no_pairs() -> None:
    with pytest.raises(UserError, match=r"no sample is a wrong answer.*keep: all"):
        curated("pairs", [answer("a", "b", None)])


def test_every_answer_is_labelled_and_a_demonstration_is_right() -> None:
    samples = [*ANSWERS[4:7], answer("shown", "a", None)]
    assert [row.scalars for row in curated("label", samples, scalar="chosen")] == [
        {"chosen": value} for value in (0.0, 1.0, 0.0, 1.0)
    ]
    assert [row.scalars["negative"] for row in curated("label", samples, scalar="negative")] == [1.0, 0.0, 1.0, 0.0]
