"""The temperature of rollouts: schedules, and the one that gives a chosen entropy; numbers of sheet 35."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from steps import on_ranks

from posttrain.advantages import build_advantage
from posttrain.data import Sample, user
from posttrain.data.scores import ENTROPY_METRIC, Chunk, TokenScores
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.generation import Completion, Sampling
from posttrain.rewards import Score, build_reward
from posttrain.sources.answering import Answering
from posttrain.sources.rollout import Question, RolloutSettings
from posttrain.sources.rollouts import Rollouts
from posttrain.sources.temperature import EntropyTemperature, build_temperature, mean_entropy

LOGITS = torch.tensor([[2.0, 0.0, -1.0]])
QUESTIONS = [Question(Sample((user(f"{n}?"),), answer="1"), np.array([7, n], np.int32)) for n in range(6)]


def entropy(temperature: float, count: int = 64) -> float:
    function = ENTROPY_METRIC.function
    assert function is not None
    return float(function(Chunk(LOGITS.double() / temperature, torch.zeros(1, dtype=torch.long), torch.zeros(1))))


class Mouth:
    """Always says the same two tokens, and keeps the temperatures that it was asked at."""

    def __init__(self) -> None:
        self.temperatures: list[float] = []

    def __call__(self, samples: Any, prompts: Any, n: int, sampling: Sampling, step: Step) -> list[Completion]:
        self.temperatures.append(sampling.temperature)
        tokens, logprobs = np.array([10, 11], np.int32), np.full(2, -0.5, np.float32)
        return [
            Completion(row, draw, tokens, logprobs, logprobs, "stop", str(draw % 2))
            for row in range(len(prompts))
            for draw in range(n)
        ]


def scored(sequences: Any, needs: Any) -> list[TokenScores]:
    """Entropies of the sheet's logits, at each sequence's temperature."""
    rows = [torch.full((s.targets,), entropy(s.scalars.get("temperature", 1.0))) for s in sequences]
    return [TokenScores(torch.full((len(row),), -0.5), {need.name: row for need in needs}) for row in rows]


def source(mouth: Mouth, temperature: Any, **more: Any) -> Rollouts:
    settings = RolloutSettings(prompts=2, n=2, sampling=Sampling(max_new_tokens=4))
    verify = lambda sample, text: Score(float(text == sample.answer))  # noqa: E731
    answering = Answering(settings, mouth, build_reward("task"), verify)
    return Rollouts(
        QUESTIONS,
        settings,
        answering,
        advantage=build_advantage("group"),
        seed=0,
        temperature=build_temperature(temperature),
        **more,
    )


def step(index: int = 0, **more: Any) -> Step:
    return Step(index=index, total=10, seed=100 + index, score=scored, **more)


def test_golden_entropies_of_tempered_logits() -> None:
    assert [entropy(t) for t in (0.6, 0.85, 1.0)] == pytest.approx([0.187931, 0.408282, 0.524267], abs=1e-6)
    assert entropy(0.725553) == pytest.approx(0.3, abs=1e-6)
    assert entropy(1e6) == pytest.approx(math.log(3), abs=1e-6)
    assert np.all(np.diff([entropy(t) for t in np.arange(0.1, 3, 0.1)]) > 0)


def test_the_closest_temperature_of_the_grid_is_taken_and_kept() -> None:
    rule = EntropyTemperature()
    assert rule.grid == pytest.approx(np.arange(0.5, 1.21, 0.05))
    assert rule.at(step(), entropy) == 0.75  # 0.725553 lies between; H(0.75) = 0.322, H(0.7) = 0.276
    assert rule.at(step(1), lambda temperature, count: 0.0) == 0.75
    assert EntropyTemperature(target=0.1).at(step(), entropy) == 0.5
    assert EntropyTemperature(low=0.8, high=0.8).grid == [0.8]


def test_with_every_it_is_measured_again() -> None:
    rule = EntropyTemperature(every=2)
    assert [rule.at(step(), entropy), rule.at(step(), entropy)] == [0.75, 0.75]
    assert rule.at(step(), lambda temperature, count: entropy(temperature) - 0.2) == 0.95


def test_entropies_are_the_mean_over_all_drawn_tokens() -> None:
    mouth = Mouth()
    sampling = Sampling(temperature=0.85)
    assert mean_entropy(QUESTIONS, mouth, sampling, step()) == pytest.approx(0.408282, abs=1e-6)
    assert mean_entropy([], mouth, sampling, step()) == 0.0
    assert mouth.temperatures == [0.85, 0.85]


def test_a_rank_without_questions_hears_of_the_others() -> None:
    def work(questions: list[Question], gather: Any) -> float:
        return mean_entropy(questions, Mouth(), Sampling(temperature=0.85), step(gather=gather))

    assert on_ranks([QUESTIONS, []], work) == pytest.approx([0.408282] * 2, abs=1e-6)


def test_rounds_are_drawn_and_learned_from_at_the_chosen_temperature() -> None:
    mouth, here = Mouth(), step()
    sequences = source(mouth, {"name": "entropy", "questions": 3}).next(here)
    assert mouth.temperatures == [*np.round(np.arange(0.5, 1.21, 0.05), 6), 0.75]
    assert [s.scalars["temperature"] for s in sequences] == [0.75] * 4
    assert here.report["temperature"] == (0.75, 1)
    assert here.report["tempered_entropy"] == pytest.approx((entropy(0.75), 1))
    assert here.report["sampled_entropy"] == pytest.approx((4.0, 8.0))  # 0.5 nats a token
    assert here.report["entropy_outside"] == (1.0, 1)  # 0.45 is the most


def test_the_band_around_the_target() -> None:
    rule = EntropyTemperature()
    assert [rule.holds(value) for value in (0.19, 0.21, 0.44, 0.46)] == [False, True, True, False]


def test_a_schedule_moves_it_and_sequences_keep_their_own() -> None:
    mouth = Mouth()
    rolls = source(mouth, {"name": "linear", "start": 0.6, "end": 1.0})
    found = [rolls.next(step(index))[0].scalars["temperature"] for index in (0, 5, 9)]
    assert found == mouth.temperatures == pytest.approx([0.6, 0.8, 0.96])


def test_at_temperature_1_sequences_say_nothing() -> None:
    assert "temperature" not in source(Mouth(), 1.0).next(step())[0].scalars


def test_a_restored_source_does_not_measure_again() -> None:
    first = source(Mouth(), {"name": "entropy"})
    first.next(step())
    mouth = Mouth()
    second = source(mouth, {"name": "entropy"})
    second.restore([first.state()])
    assert second.next(step(1))[0].scalars["temperature"] == 0.75
    assert mouth.temperatures == [0.75]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "entropy", "low": 1.0, "high": 0.9}, "low 1 is above high 0.9"),
        ({"name": "entropy", "targt": 0.3}, "unknown option 'targt'"),
        ({"name": "entrpy"}, "unknown schedule 'entrpy'"),
        ("hot", "rollouts.temperature"),
    ],
)
def test_what_is_no_temperature_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_temperature(spec)


def test_a_schedule_that_ends_at_0_is_refused_where_it_does() -> None:
    rolls = source(Mouth(), {"name": "switch", "start": 1.0, "end": 0.0, "at": 1})
    rolls.next(step())
    with pytest.raises(UserError, match="is 0 in step 2"):
        rolls.next(step(1))
