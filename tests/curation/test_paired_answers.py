"""Pairs of a better and a worse model's answers, filtered without right answers (self-reinforcement, sheet 7)."""

from typing import Any

import pytest

from posttrain.curation import Drawing, Reply, curate, pair_numbers, takes_models
from posttrain.curation.paired_answers import pair_precision
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError


def answer(question: str, text: str, stage: str, value: float | None = None, **scalars: float) -> Sample:
    meta = {"stage": stage, "value": value, "final_answer": text or None, "draw": 0}
    return Sample((user(question),), (assistant(text),), meta=meta, scalars=scalars)


def both(question: str, texts: tuple[str, str], scores: tuple[float, float]) -> list[Sample]:
    return [
        answer(question, text, stage, score=score)
        for text, stage, score in zip(texts, ("strong", "weak"), scores, strict=True)
    ]


def paired(rows: list[Sample], **options: Any) -> list[Sample]:
    return curate({"name": "paired_answers", "chosen": "strong", "rejected": "weak", **options}, rows, 0, {})


SHEET = [
    *both("better", ("yes", "no"), (4, 2)),
    *both("the same", ("yes", "yes"), (4, 2)),
    *both("a tie", ("yes", "no"), (3, 3)),
    *both("empty", ("", "no"), (4, 2)),
    *both("worse", ("yes", "no"), (1, 4)),
]
"""Check 6 of the sheet."""


def test_a_pair_is_kept_where_the_chosen_answer_is_strictly_better() -> None:
    (pair,) = paired(SHEET, by="score")
    assert (pair.prompt_text, pair.response_text, pair.rejected[0]["content"]) == ("better", "yes", "no")
    assert pair.meta["scores"] == [4, 2]
    assert not pair.scalars


def test_without_a_score_only_equal_and_empty_answers_are_dropped() -> None:
    assert [pair.prompt_text for pair in paired(SHEET)] == ["better", "a tie", "worse"]


def test_answers_are_paired_in_their_order_and_a_question_that_one_side_lacks_gives_none() -> None:
    rows = [answer("q", text, "strong") for text in ("a", "b")] + [
        answer("q", text, "weak") for text in ("c", "d", "e")
    ]
    rows.append(answer("alone", "a", "strong"))
    assert [(p.response_text, p.rejected[0]["content"]) for p in paired(rows)] == [("a", "c"), ("b", "d")]


def test_a_model_may_be_set_against_itself() -> None:
    rows = [answer("q", text, "strong") for text in ("a", "b", "c", "d", "e")]
    found = paired(rows, rejected="strong")
    assert [(p.response_text, p.rejected[0]["content"]) for p in found] == [("a", "b"), ("c", "d")]


def test_a_stage_without_answers_and_a_missing_score_are_named() -> None:
    with pytest.raises(UserError, match="no answer is of stage 'seldom'; the data have strong, weak"):
        paired(SHEET, chosen="seldom")
    with pytest.raises(UserError, match="no scalar 'agreement'"):
        paired(SHEET, by="agreement")


def test_precision_is_the_share_of_pairs_that_are_the_right_way_round() -> None:
    values = {"good": (1.0, 0.0), "both right": (1.0, 1.0), "both wrong": (0.0, 0.0), "turned": (0.0, 1.0)}
    rows = [
        answer(question, text, stage, value)
        for question, pair in values.items()
        for text, stage, value in zip(("right", "no"), ("strong", "weak"), pair, strict=True)
    ]
    pairs = paired(rows)
    assert pair_precision(pairs) == 0.25
    assert pair_numbers(pairs) == {"length_gap": 3.0, "pair_precision": 0.25}


def test_of_questions_without_answers_the_precision_is_not_known() -> None:
    assert pair_numbers(paired(SHEET)) == {"length_gap": 1.0}
    assert pair_numbers(SHEET) == {}


class Says:
    """A model that gives the same replies to every question, or those that a function gives."""

    def __init__(self, *replies: str, rule: Any = None) -> None:
        self.replies, self.rule, self.asked = replies, rule, list[tuple[Sample, Drawing]]()

    def draw(self, samples: list[Sample], drawing: Drawing) -> list[list[Reply]]:
        self.asked += [(sample, drawing) for sample in samples]
        texts = [self.rule(row.prompt_text) if self.rule else self.replies for row in samples]
        return [[Reply(text, None, text or None) for text in row] for row in texts]


def test_self_consistency_is_the_share_of_new_answers_that_come_to_the_same() -> None:
    model = Says("4", "4", "5", "4", "")
    rows = [answer("q", "4", "strong"), answer("q", "5", "weak"), answer("q", "", "weak")]
    found = curate("self_consistency", rows, 0, {"m": model})
    assert [row.scalars["agreement"] for row in found] == pytest.approx([0.6, 0.2, 0.0])
    ((asked, drawing),) = model.asked
    assert (asked.response, drawing.n, drawing.scored) == ((), 5, False)


def test_answers_that_no_stage_has_drawn_cannot_agree() -> None:
    with pytest.raises(UserError, match="no sample has a 'final_answer'"):
        curate("self_consistency", [Sample((user("q"),), (assistant("4"),))], 0, {"m": Says("4")})


PAIR = paired(both("How many?", ("good", "bad"), (1, 0)))


def fair(prompt: str) -> list[str]:
    first = "Answer 1: good" in prompt
    return [f"Answer 1: {7 if first else 3}, Answer 2: {3 if first else 7}"]


@pytest.mark.parametrize(
    ("judge", "kept"),
    [
        (Says(rule=fair), True),
        (Says("Answer 1: 9, Answer 2: 2"), False),  # whatever stands first
        (Says("Answer 1: 5, Answer 2: 5"), False),
        (Says("the first one"), False),
    ],
)
def test_a_judge_has_to_prefer_the_chosen_answer_in_both_orders(judge: Says, kept: bool) -> None:
    assert takes_models("self_judge")
    found = curate("self_judge", PAIR, 0, {"m": judge})
    assert bool(found) == kept
    assert len(judge.asked) == 2
    if kept:
        assert found[0].meta["ratings"] == [[7, 3], [7, 3]]


def test_one_order_alone_believes_what_stands_first() -> None:
    assert curate({"name": "self_judge", "both_orders": False}, PAIR, 0, {"m": Says("Answer 1: 9, Answer 2: 2")})


def test_a_prompt_without_a_place_for_an_answer_is_refused() -> None:
    with pytest.raises(UserError, match=r"no place for \{second\}"):
        curate({"name": "self_judge", "prompt": "{question} {first}"}, PAIR, 0, {"m": Says("")})


def test_what_is_no_pair_cannot_be_judged() -> None:
    with pytest.raises(UserError, match="has no rejected answer"):
        curate("self_judge", SHEET, 0, {"m": Says("")})
