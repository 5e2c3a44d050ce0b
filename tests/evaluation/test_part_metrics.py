"""pass@k by parts of the score: sheet 44's C@k, S@k, gap and best of n."""

from typing import Any

import pytest

from posttrain.advantages import Outcomes, build_advantage
from posttrain.errors import UserError
from posttrain.evaluation import Answer, summarise
from posttrain.evaluation.metrics import pass_at_k
from posttrain.generation import Sampling

PASSES = {"compiles": 1.0, "judged": 0.7}


def answer(problem: str, draw: int, judged: float | None, **more: Any) -> Answer:
    """An answer that does not compile where nothing is judged."""
    parts = {"compiles": float(judged is not None), "judged": judged or 0.0}
    fields: dict[str, Any] = {"sample_id": problem, "draw": draw, "value": judged or 0.0, "parts": parts, **more}
    usual = {"task": "", "prompt": "", "expected": "", "text": "", "info": {}, "error": None, "finish_reason": "stop"}
    return Answer(**{**usual, "tokens": 1, "logprob": 0.0, **fields})


def metrics(*problems: list[float | None], passes: dict[str, float] = PASSES) -> dict[str, float]:
    answers = [answer(str(at), draw, value) for at, drawn in enumerate(problems) for draw, value in enumerate(drawn)]
    result = summarise(answers, n=max(map(len, problems)), sampling=Sampling(temperature=1.0), passes=passes)
    return dict(result.metrics)


@pytest.mark.parametrize(("k", "chance"), [(1, 0.25), (2, 0.464286), (4, 0.785714), (8, 1.0)])
def test_pass_at_k_of_2_right_ones_among_8(k: int, chance: float) -> None:
    """The sheet's check 1."""
    assert pass_at_k([8, 8, 8], [2, 0, 8], k) == pytest.approx([chance, 0, 1], abs=1e-6)
    found = metrics([1.0, 0.9, 0.5, 0.5, None, None, None, None])
    assert found[f"pass@{k}/judged"] == pytest.approx(chance, abs=1e-6)
    assert found["pass@1/compiles"] == 0.5


def test_the_threshold_is_inclusive() -> None:
    """The sheet's check 6: 0.7 counts, also where it was added up."""
    assert metrics([0.7, 0.1 + 0.6, 0.69, None])["pass@1/judged"] == 0.5


def test_what_means_the_same_compiles() -> None:
    """The sheet's check 6: S@1 <= C@1, equal if and only if every formula that compiles passes."""
    some = metrics([1.0, 0.5, None], [1.0, None, None])
    every = metrics([1.0, 0.8, None], [0.7, None, None])
    assert some["pass@1/judged"] < some["pass@1/compiles"]
    assert every["pass@1/judged"] == every["pass@1/compiles"]


def test_the_gap_is_what_passes_and_is_not_right() -> None:
    found = metrics([1.0, 0.5, 0.0, None], [1.0, 1.0, None, None])
    assert found["accuracy"] == 0.375
    assert found["gap/compiles"] == pytest.approx(0.625 - 0.375)


def test_the_best_of_n_is_0_where_nothing_compiles_and_the_other_mean_leaves_those_out() -> None:
    found = metrics([0.5, 0.9], [None, None], [None, 0.2], [0.0, None])
    assert found["best@2"] == pytest.approx((0.9 + 0 + 0.2 + 0) / 4)
    assert found["best@2/compiles"] == pytest.approx((0.9 + 0.2 + 0) / 3)


def test_problems_with_too_few_scored_draws_say_nothing_of_a_large_k() -> None:
    answers = [
        answer("a", 0, 1.0),
        answer("a", 1, None, error="z3 is away", value=None),
        answer("b", 0, 0.5),
        answer("b", 1, 1.0),
    ]
    found = summarise(answers, n=2, sampling=Sampling(temperature=1.0), passes=PASSES, max_errors=0.5).metrics
    assert found["pass@2/judged"] == 1
    assert found["pass@1/judged"] == 0.75
    assert found["best@2"] == 1


def test_without_passes_nothing_is_added() -> None:
    assert not [name for name in metrics([1.0, None], passes={}) if "/" in name or name.startswith("best")]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UserError, match=r"'passes' names 'compile'.*did you mean 'compiles'"):
        metrics([1.0, None], passes={"compile": 1.0})


@pytest.mark.parametrize(
    ("advantage", "wanted"),
    [
        ({"name": "group", "std": "none"}, [-0.3, 0.1, 0.5, -0.3]),
        ({"name": "group", "std": "sample", "eps": 1e-6}, [-0.783347, 0.261116, 1.305579, -0.783347]),
        ("reward", [0.0, 0.4, 0.8, 0.0]),
    ],
)
def test_the_three_readings_of_reward_normalisation(advantage: Any, wanted: list[float]) -> None:
    """The sheet's checks 3 and 4: of a saturated question only the raw reward is left to learn from."""
    import numpy as np

    def advantages(rewards: list[float]) -> list[float]:
        given = Outcomes(np.array(rewards), np.zeros(len(rewards), int), np.ones(len(rewards), int))
        return [float(column[0]) for column in build_advantage(advantage)(given)["advantage"]]

    assert advantages([0, 0.4, 0.8, 0]) == pytest.approx(wanted, abs=1e-6)
    assert advantages([1.0] * 8) == [float(advantage == "reward")] * 8
