"""Samples scored by models (PoFT, sheet 17), chosen by score, and mislabelled."""

from typing import Any

import numpy as np
import pytest

from posttrain.curation import curate, takes_models
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError
from posttrain.sources import Demonstrations


def sample(question: str, answer: str = "1", **scalars: float) -> Sample:
    return Sample((user(question),), (assistant(answer),), answer=answer, scalars=scalars)


class Says:
    """A model whose log-probs of the i-th sample are given."""

    def __init__(self, *logprobs: list[float] | None) -> None:
        self.values = logprobs
        self.asked_for_ends: list[bool] = []

    def logprobs(self, samples: list[Sample], *, ends: bool = True) -> list[Any]:
        self.asked_for_ends.append(ends)
        return [None if values is None else np.array(values, np.float32) for values in self.values]


ROWS = [sample("a"), sample("b"), sample("c")]


def scores_of(models: dict[str, Says], **options: Any) -> dict[str, float]:
    found = curate({"name": "reference_scores", **options}, ROWS, 0, models)
    return {row.prompt_text: row.scalars["reference_score"] for row in found}


def test_a_score_is_the_mean_over_models_of_each_ones_mean_over_tokens() -> None:
    """Checks 4 and 5 of the sheet: models with other numbers of tokens count alike."""
    one = Says([-0.8], [-0.8, -0.8], [0.0])
    two = Says([-1.0, -0.5, -1.5], [-0.4], [0.0])
    three = Says([-1.5, -1.5], [-0.6], [0.0])
    assert scores_of({"1": one, "2": two, "3": three}) == pytest.approx({"a": -1.1, "b": -0.6, "c": 0.0})


def test_a_model_named_twice_over_changes_nothing() -> None:
    """Check 8 of the sheet."""
    logprobs = ([-1.0, -2.0], [-0.5], [-3.0])
    assert scores_of({"x": Says(*logprobs), "y": Says(*logprobs)}) == scores_of({"x": Says(*logprobs)})


def test_averaging_probabilities_is_something_else() -> None:
    """Check 7 of the sheet."""
    found = scores_of({"x": Says([-0.5], [0.0], [0.0]), "y": Says([-2.5], [0.0], [0.0])})["a"]
    assert found == pytest.approx(-1.5)
    assert abs(found - np.log((np.exp(-0.5) + np.exp(-2.5)) / 2)) > 0.2


def test_a_sample_that_any_model_cannot_read_is_left_out() -> None:
    assert set(scores_of({"x": Says([-1.0], None, [-1.0]), "y": Says([-1.0], [-1.0], [])})) == {"a"}


def test_the_end_of_a_turn_counts_unless_left_out() -> None:
    model = Says([-1.0], [-1.0], [-1.0])
    scores_of({"x": model})
    scores_of({"x": model}, ends=False)
    assert model.asked_for_ends == [True, False]


def test_other_scalars_stay_and_the_new_one_has_the_name_asked_for() -> None:
    (found,) = curate(
        {"name": "reference_scores", "scalar": "fit"}, [sample("a", mislabelled=1.0)], 0, {"x": Says([-2.0])}
    )
    assert found.scalars == {"mislabelled": 1.0, "fit": -2.0}


def test_curations_say_whether_they_ask_models() -> None:
    assert takes_models("reference_scores")
    assert not takes_models("top")


SCORED = [sample(str(value), score=value) for value in (0.5, -1.0, 2.0, 2.0, 0.0)]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"share": 0.4}, ["2.0", "2.0"]),
        ({"count": 3}, ["0.5", "2.0", "2.0"]),
        ({"share": 0.4, "lowest": True}, ["-1.0", "0.0"]),
        ({"share": 1.0}, ["0.5", "-1.0", "2.0", "2.0", "0.0"]),
        ({"count": 99}, ["0.5", "-1.0", "2.0", "2.0", "0.0"]),
    ],
)
def test_the_top_is_kept_in_its_old_order(options: dict[str, Any], kept: list[str]) -> None:
    assert [row.prompt_text for row in curate({"name": "top", "by": "score", **options}, SCORED, 0, {})] == kept


def test_of_equal_scores_the_first_are_kept() -> None:
    (found,) = curate({"name": "top", "by": "score", "count": 1}, SCORED, 0, {})
    assert found is SCORED[2]


def test_a_top_without_a_scalar_or_a_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"5 of 5 samples have no scalar 'fit'"):
        curate({"name": "top", "by": "fit", "count": 1}, SCORED, 0, {})
    for options in ({}, {"share": 0.5, "count": 1}):
        with pytest.raises(UserError, match="give either 'share' or 'count'"):
            curate({"name": "top", "by": "score", **options}, SCORED, 0, {})


MANY = [sample(f"question {n}", f"answer {n}") for n in range(20)]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 6), (1.0, 20)])
def test_a_share_of_the_samples_gets_one_anothers_responses(share: float, count: int) -> None:
    found = curate({"name": "mislabel", "share": share}, MANY, 0, {})
    changed = [row for row, old in zip(found, MANY, strict=True) if row.response != old.response]
    assert len(changed) == count
    assert [row.scalars["mislabelled"] == 1 for row in found] == [row in changed for row in found]
    assert sorted(row.response_text for row in found) == sorted(row.response_text for row in MANY)
    assert [row.answer for row in found] == [row.answer for row in MANY]


def test_who_is_mislabelled_depends_on_the_seed_alone() -> None:
    ids = [{row.id for row in curate({"name": "mislabel", "share": 0.5}, MANY, seed, {})} for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_who_is_mislabelled_has_nothing_to_do_with_the_order_of_training() -> None:
    samples = [sample(f"question {n}", f"answer {n}") for n in range(200)]
    found = curate({"name": "mislabel", "share": 0.5}, samples, 0, {})
    order = Demonstrations(range(200), 100, 0).indices(0)  # type: ignore[arg-type]
    assert 35 < sum(found[index].scalars["mislabelled"] for index in order) < 65
