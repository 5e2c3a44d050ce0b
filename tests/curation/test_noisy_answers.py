"""Label noise of sheet 13: fixed for each question, nested over shares, and what it does to a perfect policy."""

from typing import Any

import pytest

from posttrain.curation import curations
from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.tasks.chains import Chains

TASK = Chains()
SAMPLES = TASK.samples(2048, 0)


def noisy(share: float, samples: list[Sample] = SAMPLES, seed: int = 0, **options: Any) -> list[Sample]:
    kind, checked = curations.options({"name": "noisy_answers", "share": share, **options})
    return curations[kind](samples, seed, **checked)


def changed(samples: list[Sample]) -> dict[str, str | None]:
    return {sample.prompt_id: sample.answer for sample in samples if "true_answer" in sample.meta}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 204), (0.3, 614), (0.5, 1024), (0.9, 1843), (1.0, 2048)])
def test_a_share_of_the_questions_has_another_answer_and_keeps_the_true_one(share: float, count: int) -> None:
    found = noisy(share)
    assert len(changed(found)) == count
    for before, after in zip(SAMPLES, found, strict=True):
        assert after.meta.get("true_answer", after.answer) == before.answer
        assert ("true_answer" in after.meta) == (after.answer != before.answer)
        assert (after.prompt, after.response) == (before.prompt, before.response)


def test_what_is_wrong_at_a_small_share_is_as_wrong_at_a_larger_one() -> None:
    few, many = changed(noisy(0.3)), changed(noisy(0.7))
    assert few.items() <= many.items()
    assert few != changed(noisy(0.3, seed=1))


@pytest.mark.parametrize(("share", "reward"), [(0.0, 1.0), (1.0, 0.0)])
def test_golden_reward_of_a_perfect_policy(share: float, reward: float) -> None:
    """Check 8: without noise the reward is the clean one, and where every answer is wrong nothing right is rewarded."""
    assert {TASK.verify(sample, f"<answer>{right.answer}</answer>").value for sample, right in
            zip(noisy(share), SAMPLES, strict=True)} == {reward}  # fmt: skip


def test_all_samples_of_a_question_have_the_same_answer() -> None:
    twice = [*SAMPLES[:50], *Chains().samples(50, 0, style="prose")]
    answers: dict[str, set[str | None]] = {}
    for sample in noisy(0.5, twice):
        answers.setdefault(sample.prompt_id, set()).add(sample.answer)
    assert len(answers) == 50
    assert all(len(found) == 1 for found in answers.values())
    assert len(changed(noisy(0.5, twice))) == 25


def test_a_shifted_answer_is_near_the_right_one() -> None:
    for sample in noisy(1.0):
        right, wrong = int(sample.meta["true_answer"]), int(sample.answer or "")
        assert abs(right - wrong) in (1, 2, 10) or wrong == -right


def test_a_frequent_answer_is_the_models_own_and_shifted_where_it_has_none() -> None:
    samples = [Sample((user("a"),), answer="5", meta={"frequent_wrong": "55"}), Sample((user("b"),), answer="1,000.5")]
    first, second = noisy(1.0, samples, wrong="frequent")
    assert first.answer == "55"
    assert abs(float(second.answer or "")) in (990.5, 998.5, 999.5, 1000.5, 1001.5, 1002.5, 1010.5)
    with pytest.raises(UserError, match="right_share"):
        noisy(0.5, samples[1:], wrong="frequent")


def test_words_cannot_be_shifted() -> None:
    with pytest.raises(UserError, match="no number to shift"):
        noisy(1.0, [Sample((user("a"),), answer="blue")])
