"""Golden numbers of sheet 13 (checks 2, 3 and 6), and what rewards without labels must not do."""

import math
from collections.abc import Sequence as List
from dataclasses import replace

import numpy as np
import pytest
import torch

from posttrain.data import Sample, Sequence, user
from posttrain.data.batch import collate
from posttrain.data.scores import SELF_CERTAINTY, Chunk, Need, TokenScores
from posttrain.rewards import Attempt, Moment, Score, build_reward
from posttrain.tasks.answers import answered, verify_number

QUESTION = Sample((user("6 + 1?"),), answer="7")


def attempt(text: str, sample: Sample = QUESTION, size: int = 2, temperature: float = 1.0) -> Attempt:
    return Attempt(
        sample=sample,
        text=text,
        tokens=np.arange(size, dtype=np.int32),
        logprobs=np.zeros(size, np.float32),
        finish_reason="stop",
        verify=verify_number,
        prompt=np.array([1], np.int32),
        temperature=temperature,
    )


def scores(spec: str | dict[str, object], attempts: List[Attempt], moment: Moment | None = None) -> list[Score]:
    (found,) = build_reward(spec)([list(attempts)], moment or Moment())
    return found


def votes(*answers: int | str | None, sample: Sample = QUESTION) -> list[Score]:
    texts = ["I do not know." if answer is None else answered(str(answer)) for answer in answers]
    return scores("majority", [attempt(text, sample) for text in texts])


def test_golden_majority_of_eight_votes_of_which_four_are_learned_from() -> None:
    found = votes(5, 7, 5, None, 5, 7, 9, 7)
    assert [score.value for score in found[:4]] == [1, 0, 1, 0]  # 3 : 3, the first seen wins, not the right one
    assert {score.info["label"] for score in found} == {"5"}
    assert {score.parts["majority/ratio"] for score in found} == {0.375}
    assert {score.parts["majority/label_right"] for score in found} == {0}
    assert {score.info["label"] for score in votes(7, 5, 5, 7)} == {"7"}


def test_the_label_of_a_vote_is_not_the_right_answer_and_is_the_same_without_one() -> None:
    unlabelled = Sample((user("6 + 1?"),))
    for sample in (QUESTION, unlabelled):
        assert [score.value for score in votes(5, 5, 7, sample=sample)] == [1, 1, 0]
    assert "majority/label_right" not in votes(5, 5, 7, sample=unlabelled)[0].parts
    assert votes(5, 7, 7)[0].parts["majority/label_right"] == 1
    assert all(score.error is None for score in votes(5, 5, 7, sample=unlabelled))


def test_what_cannot_be_read_never_wins_and_counts_among_the_votes() -> None:
    found = votes(None, None, None, 7)
    assert [score.value for score in found] == [0, 0, 0, 1]
    assert found[0].parts["majority/ratio"] == 0.25
    nothing = votes(None, None)
    assert [score.value for score in nothing] == [0, 0]
    assert dict(nothing[0].parts) == {"majority": 0, "majority/ratio": 0, "majority/label_right": 0}


def test_one_answer_in_several_spellings_is_one_answer() -> None:
    assert [score.value for score in votes("5", "5", "7.0", "$7", "7")] == [0, 0, 1, 1, 1]


def logits_of(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows)


def certainty(logits: torch.Tensor) -> list[float]:
    size = len(logits)
    chunk = Chunk(logits, torch.zeros(size, dtype=torch.long), torch.arange(size))
    assert SELF_CERTAINTY.function is not None
    return SELF_CERTAINTY.function(chunk).tolist()  # type: ignore[no-any-return]


def test_golden_self_certainty_of_logits() -> None:
    logits = logits_of([[2.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    found = certainty(logits)
    assert found == pytest.approx([2.2538560221, 1.3862943611], abs=1e-6)
    assert sum(found) / 2 == pytest.approx(1.8200751916, abs=1e-6)
    assert [value - math.log(4) for value in found] == pytest.approx([0.8675616610, 0.0], abs=1e-6)
    assert certainty(logits + 3.5) == pytest.approx(found, abs=1e-6)
    uniform = torch.full((4,), 0.25)
    kl = (uniform * (uniform.log() - torch.log_softmax(logits[0], -1))).sum()
    assert found[0] == pytest.approx(float(kl) + math.log(4), abs=1e-6)


def test_self_certainty_has_no_gradient() -> None:
    assert not SELF_CERTAINTY.differentiable


def test_self_certainty_is_the_mean_over_drawn_tokens_of_the_policy_as_it_drew() -> None:
    asked: list[tuple[str | None, float | None]] = []

    def ask(model: str | None, sequences: List[Sequence], needs: tuple[Need, ...]) -> list[TokenScores]:
        """Logits by token, over the temperature that the batch names."""
        assert needs == (SELF_CERTAINTY,)
        found = []
        for sequence in sequences:
            batch = collate([sequence])
            warmth = batch.temperature
            asked.append((model, None if warmth is None else float(warmth[0])))
            rows = logits_of([[2.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0]])[batch.tokens]
            rows = rows if warmth is None else rows / warmth[:, None]
            found.append(TokenScores(rows[:, 0], {"self_certainty": torch.tensor(certainty(rows))}))
        return found

    warm = certainty(logits_of([[4.0, 0.0, 0.0, -4.0]]))[0]
    found = scores("self_certainty", [attempt("a"), attempt("b", size=1, temperature=0.5)], Moment(0.0, ask))
    assert [score.value for score in found] == pytest.approx([1.8200751916, warm], abs=1e-6)
    assert asked == [(None, 1.0), (None, 0.5)]


@pytest.mark.parametrize(
    ("text", "value", "once"),
    [
        (r"<think>a</think> so \boxed{7}", 1, 1),
        (r"<think>\boxed{7}</think> so 7", 0, 0),
        (r"\boxed{7}", 0, 0),
        (r"a</think> \boxed{7}", 0, 0),
        (r"<think>a \boxed{7}", 0, 0),
        (r"<think>a</think> \boxed{7} or \boxed{8}", 1, 0),
        (r"<think>\boxed{7}</think> \boxed{7}", 1, 0),
    ],
)
def test_golden_gate_of_thoughts(text: str, value: float, once: float) -> None:
    assert scores("thinks_first", [attempt(text)])[0].value == value
    assert scores({"name": "thinks_first", "once": True}, [attempt(text)])[0].value == once


def test_the_gate_shuts_a_reward_and_knows_other_marks() -> None:
    gate = {"name": "thinks_first", "answer": "<answer>"}
    both = [attempt("<think>6+1=7</think><answer>7</answer>"), attempt("<answer>7</answer>")]
    assert [score.value for score in scores({"name": "task", "gate": gate}, both)] == [1, 0]


def test_a_random_reward_depends_on_question_and_moment_and_not_on_the_answer() -> None:
    spec = {"name": "random", "chance": 0.25}
    right, wrong = ([attempt(answered(str(n)))] * 400 for n in (7, 8))
    first = [score.value for score in scores(spec, right, Moment(0.5))]
    assert set(first) == {0, 1}
    assert sum(first) / 400 == pytest.approx(0.25, abs=0.08)
    assert first == [score.value for score in scores(spec, wrong, Moment(0.5))]
    assert first != [score.value for score in scores(spec, right, Moment(0.25))]
    other = [replace(one, sample=Sample((user("another"),))) for one in right]
    assert first != [score.value for score in scores(spec, other, Moment(0.5))]
