"""Which plans are carried out, and what their executions elect, by the checks of sheet 33."""

import numpy as np
import pytest

from posttrain.errors import UserError
from posttrain.evaluation.plans import (
    TF_IDF,
    cluster_plans,
    embedding,
    nearest_text,
    next_plan,
    weighted_vote,
    word_share,
)

EMBED = embedding(TF_IDF)


def test_golden_vote_in_which_empty_answers_never_win() -> None:
    assert weighted_vote(["4", "5", "4", ""], [1, 3, 1, 9]) == "5"
    assert weighted_vote(["4", "5", "4", None], [2, 3, 1, 9]) == "4"  # the same weight: the first
    assert weighted_vote(["", None], [1, 1]) is None


def test_plans_that_share_steps_are_one_cluster() -> None:
    plans = ["1. a b", "1. a c", "1. a b", "2. x y", "2. x z", "3. m n", "2. x y"]
    found = cluster_plans(plans, 3, 0, EMBED)
    assert found == cluster_plans(plans, 3, 0, EMBED)
    assert sorted((plans[place][0], weight) for place, weight in found) == [("1", 3), ("2", 3), ("3", 1)]
    assert {plans[place] for place, _ in found} >= {"1. a b", "2. x y"}  # nearest to their centres


def test_no_more_plans_than_clusters_are_clusters_of_their_own() -> None:
    assert cluster_plans(["a", "b"], 3, 0, EMBED) == [(0, 1), (1, 1)]
    assert cluster_plans(["a", "b", "a", "a"], 2, 0, EMBED) == [(0, 3), (1, 1)]
    assert cluster_plans(["a b", "b a", "a b "], 1, 0, EMBED)[0][1] == 3


def test_vectors_have_length_1_and_a_missing_library_is_named() -> None:
    assert np.linalg.norm(EMBED(["1. a b", "2. c"]), axis=1) == pytest.approx([1, 1])
    with pytest.raises(UserError, match=r"sentence-transformers, which is not installed.*'tf-idf'"):
        embedding("some/encoder")


def test_what_a_judge_says_is_mapped_to_the_plan_most_like_it() -> None:
    plans = ["1. 5+3\n2. a*9", "1. 9-3\n2. a*5", "1. 9*3"]
    assert nearest_text("1. 9-3 2. a*5", plans) == 1
    assert nearest_text("", plans) == 0


def test_golden_shares_of_words() -> None:
    assert word_share("1. Add a\n2. double b", "1. add A 2. halve c") == pytest.approx(4 / 6)
    assert word_share("a a a b", "b c") == 0.5  # different words
    assert word_share("a", "a b c d") == 1  # of its own words
    assert word_share("", "a") == 1


def test_a_plan_that_says_the_same_is_no_other_one() -> None:
    failed = " ".join(f"w{number}" for number in range(20))
    other = [f"{' '.join(f'w{number}' for number in range(same))} {' '.join(f'x{n}' for n in range(20 - same))}"
             for same in (17, 18)]  # fmt: skip
    drawn, before = ["first", failed, "second"], {failed}
    assert next_plan(other[0], failed, drawn, before, 0.85) == other[0]  # just 85 % of its words
    assert next_plan(other[1], failed, drawn, before, 0.85) == "first"
    assert next_plan(other[1], failed, drawn, {failed, "first"}, 0.85) == "second"
    assert next_plan(other[1], failed, drawn, set(drawn), 0.85) is None
    assert next_plan("first", failed, drawn, {failed, "first"}, 0.85) == "second"  # it was carried out before
    assert next_plan("", failed, drawn, before, 0.85) == "first"
