"""Questions chosen by how often a model is right (RIF-RFT, sheet 19)."""

import math
from dataclasses import replace

import pytest

from posttrain.curation import Drawing, Reply, curate, takes_models
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError

ROWS = {
    "none": [0.0] * 8,
    "one": [0.0] * 7 + [1.0],
    "all": [1.0] * 8,
    "form only": [0.1] * 8,
    "mixed": [0.0, 1.0, 0.1, 1.0, 0.0, 0.0, 1.0, 0.1],
}
"""The sheet's check 3: what eight answers are worth; 0.1 is given for form alone."""


def sample(question: str) -> Sample:
    return Sample((user(question),), (assistant("1"),), answer="1")


SAMPLES = [sample(question) for question in ROWS]


class Answers:
    """A model whose answers to each question are worth what is given; None cannot be scored."""

    def __init__(self, values: dict[str, list[float | None]] | dict[str, list[float]]) -> None:
        self.values = values
        self.drawings: list[Drawing] = []

    def draw(self, samples: list[Sample], drawing: Drawing) -> list[list[Reply]]:
        self.drawings.append(drawing)
        return [
            [Reply("", None if value is None else value >= 1) for value in self.values[row.prompt_text]]
            for row in samples
        ]


def test_the_wrong_answer_that_comes_most_often_is_kept_for_noise() -> None:
    class Speaker(Answers):
        def draw(self, samples: list[Sample], drawing: Drawing) -> list[list[Reply]]:
            return [[Reply("", right, said) for said, right in words[row.prompt_text]] for row in samples]

    wrong = [("7", False), ("5", False), (None, False), (None, False), (None, False), ("5", False), ("1", True)]
    words = {"wrong": [*wrong, *4 * [("1", True)], *4 * [("9", None)]], "right": [("1", True)], "mute": [(None, False)]}
    rows = curate("right_share", [sample(question) for question in words], 0, {"base": Speaker({})})
    assert [row.meta.get("frequent_wrong") for row in rows] == ["5", None, None]
    noisy = curate({"name": "noisy_answers", "share": 1.0, "wrong": "frequent"}, rows, 0, {})
    assert noisy[0].answer == "5"


def kept(*steps: object, values: object = ROWS) -> list[str]:
    rows = SAMPLES
    for step in ("right_share", *steps):
        rows = curate(step, rows, 0, {"base": Answers(values)} if step == "right_share" else {})  # type: ignore[arg-type]
    return [row.prompt_text for row in rows]


def test_questions_without_a_right_answer_are_dropped_whatever_their_form_is_worth() -> None:
    assert kept("rollout_filter") == ["one", "all", "mixed"]


def test_the_strict_filter_also_drops_what_is_always_right() -> None:
    assert kept({"name": "rollout_filter", "drop_saturated": True}) == ["one", "mixed"]


def test_difficulty_keeps_shares_within_both_ends() -> None:
    assert kept({"name": "difficulty", "low": 0.125, "high": 0.375}) == ["one", "mixed"]
    assert kept({"name": "difficulty", "high": 0}) == ["none", "form only"]
    assert kept({"name": "difficulty", "low": 1}) == ["all"]


def test_ends_that_keep_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"low 0\.5 is above high 0\.25"):
        kept({"name": "difficulty", "low": 0.5, "high": 0.25})


def test_a_filter_without_measured_shares_says_what_measures_them() -> None:
    with pytest.raises(UserError, match="a step 'right_share' before this one"):
        curate("rollout_filter", SAMPLES, 0, {})


def test_shares_are_over_the_answers_that_could_be_scored_of_all_models() -> None:
    one = Answers({"a": [1.0, None], "b": [None, None], "c": [0.0, 0.0]})
    two = Answers({"a": [0.0, 0.0], "b": [None, None], "c": [1.0, 1.0]})
    rows = [sample(name) for name in "abc"]
    found = curate({"name": "right_share", "n": 2}, rows, 0, {"x": one, "y": two})  # type: ignore[dict-item]
    assert {row.prompt_text: row.scalars["right_share"] for row in found} == {"a": 1 / 3, "c": 0.5}
    assert one.drawings == [Drawing(n=2, temperature=1.0, max_new_tokens=256)]


def test_measuring_asks_models_and_filtering_does_not() -> None:
    assert takes_models("right_share")
    assert not takes_models("rollout_filter")
    assert not takes_models("difficulty")


@pytest.mark.parametrize(("right", "variance"), [(0, 0.0), (1, 0.109375), (2, 0.1875), (4, 0.25), (8, 0.0)])
def test_the_shares_that_are_kept_are_those_whose_rewards_vary(right: int, variance: float) -> None:
    """The sheet's check 2: p (1 - p) of eight answers, which scales what reinforcement learning moves."""
    values = {"x": [1.0] * right + [0.0] * (8 - right)}
    (row,) = curate("right_share", [sample("x")], 0, {"base": Answers(values)})  # type: ignore[dict-item]
    share = row.scalars["right_share"]
    assert math.isclose(share * (1 - share), variance)
    assert bool(curate({"name": "rollout_filter", "drop_saturated": True}, [row], 0, {})) == (variance > 0)


def test_filters_between_stages_of_reinforcement() -> None:
    """Sheet 35: more than 6 of 16 is too easy; after an epoch only what every answer solves goes."""
    rows = [replace(sample(f"{right}"), scalars={"right_share": right / 16}) for right in range(17)]
    hard = curate({"name": "difficulty", "high": 0.375}, rows, 0, {})
    assert [row.prompt_text for row in hard] == [str(right) for right in range(7)]
    unsolved = curate({"name": "difficulty", "high": 0.99}, rows, 0, {})
    assert [row.prompt_text for row in unsolved] == [str(right) for right in range(16)]
