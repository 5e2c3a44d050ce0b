"""Demonstrations among a question's own answers, and in their place."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_rollouts import QUESTIONS, SETTINGS, Mouth, source, step

from posttrain.data import Origin, Sequence
from posttrain.generation import Sampling
from posttrain.rewards import Score
from posttrain.sources.beginnings import build_beginning
from posttrain.sources.rollout import is_dead
from posttrain.sources.rollouts import Rollouts

END = 9
SHOWN = [
    replace(q, demonstration=np.array([50 + number % 3, 51, 52, END], np.int32), steps=(1, 3, 4))
    for number, q in enumerate(QUESTIONS)
]
ENDING = replace(SETTINGS, sampling=Sampling(max_new_tokens=4, stop_tokens=(END,)))


def right(tokens: Any) -> str:
    """The text of a demonstration is its answer; its end is none of it."""
    assert END not in tokens
    return str(tokens[0] - 50)


def half(key: int, draw: int) -> str:
    """Every other question has no right answer, the others one of three."""
    return "9" if key % 2 else str(draw)


def shown(spec: Any = None, settings: Any = ENDING, mouth: Mouth | None = None, **more: Any) -> Rollouts:
    beginning = None if spec is None else build_beginning(spec)
    return source(settings, mouth, beginning=beginning, questions=SHOWN, **({"text": right} | more))


def by_group(sequences: list[Sequence]) -> dict[str, list[Sequence]]:
    groups: dict[str, list[Sequence]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.group, []).append(sequence)
    return groups


def key(sequences: list[Sequence]) -> list[Any]:
    """What sequences are, whatever their order."""
    return sorted(
        (s.group, s.tokens.tolist(), s.origin.tolist(), {k: v.tolist() for k, v in s.columns.items()}.get("advantage"))
        for s in sequences
    )


def test_a_demonstration_is_scored_and_compared_like_an_answer_and_never_drawn() -> None:
    seen: list[Any] = []
    mouth, report = Mouth(lambda key, draw: "9"), step()
    rolls = shown("demonstration", mouth=mouth, record=lambda rollouts, index: seen.extend(rollouts))
    groups = by_group(rolls.next(report))
    assert mouth.asked == 4  # two answers to each of four questions, in one call
    assert [rollout.attempt.text for rollout in seen[2::3]] == [r.attempt.sample.answer for r in seen[2::3]]
    for *own, demonstration in groups.values():
        assert demonstration.tokens[-1] == END
        assert (demonstration.origin[2:] == Origin.DEMONSTRATION).all()
        assert demonstration.target[2:].all()
        assert demonstration.columns["advantage"][2:] == pytest.approx(2 / 3)  # 1 against 0 and 0
        assert [s.columns["advantage"][2] for s in own] == pytest.approx([-1 / 3] * 2)
    assert report.report["length"] == (4 * (2 + 3), 8)  # of what was drawn
    assert report.report["reward/begun"] == (4, 4)


def test_all_of_a_group_may_be_demonstrations() -> None:
    sequences = shown({"name": "demonstration", "count": 3}, replace(ENDING, patience=99)).next(step())
    assert all((s.origin[2:] == Origin.DEMONSTRATION).all() for s in sequences)


def test_answers_may_go_on_behind_whole_steps() -> None:
    given = set()
    for index in range(8):
        for group in by_group(shown("steps").next(step(index))).values():
            (count,) = {int((s.origin == Origin.HINT).sum()) for s in group}
            given.add(count)
    assert given == {0, 1, 3}


def test_answers_behind_different_prefixes_are_not_compared() -> None:
    settings = replace(ENDING, n=4)
    say = iter(["9", "9", "1", "9"] * 4)  # nothing right at first, then one of two behind the prefix
    mouth = Mouth(lambda key, draw: "9")
    rolls = shown({"name": "branch", "rounds": 2}, settings, mouth, text=lambda tokens: next(say))
    sequences = rolls.next(step())
    groups = by_group(sequences)
    assert len(groups) == 8
    assert {len(group) for group in groups.values()} == {2}
    for group in groups.values():
        assert len({int((s.origin == Origin.HINT).sum()) for s in group}) == 1
        rewards = np.array([s.scalars["reward"] for s in group])
        assert [s.columns["advantage"][-1] for s in group] == pytest.approx(rewards - rewards.mean())


def test_a_group_is_dead_where_answers_behind_the_same_prefix_are_all_worth_the_same() -> None:
    seen: list[Any] = []
    source(record=lambda rollouts, index: seen.extend(rollouts)).next(step())

    def group(*worth: tuple[int, float]) -> list[Any]:
        return [replace(seen[0], branch=branch, score=Score(value)) for branch, value in worth]

    assert is_dead(group((0, 0.0), (0, 0.0), (3, 1.0), (3, 1.0)))
    assert not is_dead(group((0, 0.0), (0, 0.0), (3, 1.0), (3, 0.0)))
    assert not is_dead(group((0, 0.0), (0, 1.0)))
    assert is_dead(group((0, 1.0), (0, 1.0)))
    assert is_dead([])


def test_below_every_share_of_right_answers_it_is_reinforcement_alone() -> None:
    plain = source(ENDING, Mouth(half)).next(step())
    assert key(shown(None, replace(ENDING, demonstrate=-1.0), Mouth(half)).next(step())) == key(plain)


def test_at_every_share_of_right_answers_it_is_imitation_alone() -> None:
    report = step()
    sequences = shown(None, replace(ENDING, demonstrate=1.0), Mouth(half)).next(report)
    assert len(sequences) == 4
    for sequence in sequences:
        assert sequence.tokens[2:].tolist() == SHOWN[int(sequence.tokens[1])].demonstration.tolist()
        assert sequence.target.tolist() == [False] * 2 + [True] * 4
        assert (sequence.origin[2:] == Origin.DEMONSTRATION).all()
    assert report.report["demonstrated"] == (4, 4)


@pytest.mark.parametrize("refills", [0, 2])
def test_a_demonstration_takes_the_place_of_answers_none_of_which_is_right(refills: int) -> None:
    rolls = shown(None, replace(ENDING, demonstrate=0.0, refills=refills), Mouth(half))
    groups = [group for index in range(4) for group in by_group(rolls.next(step(index))).values()]
    assert len(groups) == 16
    imitated = [group for group in groups if len(group) == 1]
    assert 0 < len(imitated) < 16
    assert all((s.origin[2:] == Origin.DEMONSTRATION).all() for (s,) in imitated)
    assert all(sum(s.scalars["reward"] for s in group) == 1 for group in groups if len(group) == 3)


def test_questions_without_a_demonstration_keep_their_answers() -> None:
    plain = source(ENDING, Mouth(half)).next(step())
    assert key(source(replace(ENDING, demonstrate=1.0), Mouth(half)).next(step())) == key(plain)


def test_demonstrations_may_be_collected_for_a_step_of_their_own() -> None:
    rolls = shown(None, replace(ENDING, demonstrate=0.0, collect=4), Mouth(half))
    plain = source(ENDING, Mouth(half))
    failed: list[str] = []
    steps_of_their_own = 0
    for index in range(12):
        sequences = rolls.next(step(index))
        if all(s.origin[-1] == Origin.DEMONSTRATION for s in sequences):
            assert sorted(s.group for s in sequences) == sorted(failed)
            assert len(failed) >= 4
            failed, steps_of_their_own = [], steps_of_their_own + 1
            continue
        plain._asked = rolls._asked - 4  # nothing else is different
        assert key(sequences) == key(plain.next(step(index)))
        failed += [name for name, g in by_group(sequences).items() if not sum(s.scalars["reward"] for s in g)]
    assert steps_of_their_own >= 2


def test_collected_demonstrations_survive_an_interruption(tmp_path: Any) -> None:
    settings = replace(ENDING, demonstrate=0.0, collect=6)
    whole = shown(None, settings, Mouth(half))
    expected = [key(whole.next(step(index))) for index in range(8)]
    first = shown(None, settings, Mouth(half))
    for index in range(2):
        first.next(step(index))
    assert first._waiting
    torch.save(first.state(), tmp_path / "state.pt")
    second = shown(None, settings, Mouth(half))
    second.restore([torch.load(tmp_path / "state.pt", weights_only=True)])
    assert [key(second.next(step(index))) for index in range(2, 8)] == expected[2:]


def test_collected_demonstrations_are_dealt_out_to_any_number_of_ranks() -> None:
    settings = replace(ENDING, demonstrate=1.0, collect=4)
    alone = shown(None, settings, Mouth(half))
    alone.next(step())
    shares = [shown(None, settings, Mouth(half), rank=rank, ranks=2) for rank in range(2)]
    for share in shares:
        share.restore([alone.state()])
    assert [len(share._waiting) for share in shares] == [2, 2]
    waiting = [share._waiting for share in shares]
    both = step(1, gather=lambda value: [2, 2] if value == 2 else [value, value])
    found = [share.next(both) for share in shares]
    assert key([*found[0], *found[1]]) == key([*waiting[0], *waiting[1]]) == key(alone.next(step(1)))


def test_collecting_is_progress() -> None:
    settings = replace(ENDING, demonstrate=0.0, collect=99, patience=3)
    rolls = shown(None, settings, Mouth(lambda key, draw: "9"))
    for index in range(6):
        rolls.next(step(index))
    assert len(rolls._waiting) == 24
