from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from steps import on_ranks

from posttrain.advantages import build_advantage
from posttrain.data import Origin, Sample, user
from posttrain.data.scores import TokenScores
from posttrain.data.step import Step, alone
from posttrain.errors import UserError
from posttrain.generation import Completion, Sampling
from posttrain.rewards import Score, build_reward
from posttrain.sources.answering import Answering
from posttrain.sources.beginnings import build_beginning
from posttrain.sources.rollout import Question, RolloutSettings
from posttrain.sources.rollouts import Rollouts

QUESTIONS = [
    Question(Sample((user(f"{number}?"),), answer=str(number % 3)), np.array([7, number], np.int32))
    for number in range(9)
]
ASKED = {question.sample.id: question.tokens.tolist() for question in QUESTIONS}
SETTINGS = RolloutSettings(prompts=4, n=3, sampling=Sampling(max_new_tokens=4))


def verify(sample: Sample, text: str) -> Score:
    if text == "broken":
        raise RuntimeError("cannot read this")
    return Score(float(text == sample.answer), info={"extracted": text})


class Mouth:
    """Says numbers that depend on the question's key and the draw alone, like an engine does."""

    def __init__(self, say: Any = lambda key, draw: str((key + draw) % 3)) -> None:
        self.say, self.asked = say, 0

    def __call__(self, samples: Any, prompts: Any, n: int, sampling: Sampling, step: Step) -> list[Completion]:
        self.asked += len(prompts)
        if sampling.temperature == 0:
            return [self._completion(index, prompt.key, 0) for index, prompt in enumerate(prompts)]
        return [self._completion(index, prompt.key, draw) for index, prompt in enumerate(prompts) for draw in range(n)]

    def _completion(self, index: int, key: int, draw: int) -> Completion:
        tokens = np.arange(2 + draw, dtype=np.int32) + 10
        logprobs = np.full(len(tokens), -0.5, np.float32)
        reason = "length" if draw == 2 else "stop"
        return Completion(index, draw, tokens, logprobs, logprobs, reason, self.say(key, draw))  # type: ignore[arg-type]


def source(settings: RolloutSettings = SETTINGS, mouth: Mouth | None = None, **more: Any) -> Rollouts:
    advantage = more.pop("advantage", {"name": "group", "std": "none"})
    answering = Answering(
        settings,
        mouth or Mouth(),
        build_reward("task"),
        verify,
        beginning=more.pop("beginning", None),
        text=more.pop("text", lambda tokens: f"[{len(tokens)}]"),
    )
    questions = more.pop("questions", QUESTIONS)
    return Rollouts(questions, settings, answering, advantage=build_advantage(advantage), seed=0, **more)


def step(index: int = 0, **more: Any) -> Step:
    return Step(index=index, total=10, seed=100 + index, **more)


def scored(sequences: Any, needs: Any) -> list[TokenScores]:
    """A trainer that finds every token a little likelier than the engine did, and the reference less likely."""
    return [
        TokenScores(torch.full((s.targets,), -0.4), {need.name: torch.full((s.targets,), -0.7) for need in needs})
        for s in sequences
    ]


def test_answers_become_sequences_with_the_advantage_of_their_group() -> None:
    seen: list[Any] = []
    sequences = source(record=lambda rollouts, index: seen.extend(rollouts)).next(step())
    assert len(sequences) == len(seen) == 12
    by_group: dict[str, list[Any]] = {}
    for sequence in sequences:
        by_group.setdefault(sequence.group, []).append(sequence)
    assert [len(group) for group in by_group.values()] == [3] * 4
    for group in by_group.values():
        rewards = np.array([sequence.scalars["reward"] for sequence in group])
        for sequence, reward in zip(group, rewards, strict=True):
            assert sequence.tokens[:2].tolist() == ASKED[sequence.sample_id]
            assert not sequence.target[:2].any()
            assert sequence.target[2:].all()
            assert (sequence.origin[2:] == Origin.ROLLOUT).all()
            assert sequence.columns["advantage"][2:] == pytest.approx(reward - rewards.mean())
            assert not sequence.columns["advantage"][:2].any()
            assert sequence.columns["sampled_logprob"][2:] == pytest.approx(-0.5)
            assert "old_logprobs" not in sequence.columns
    assert [rollout.draw for rollout in seen[:3]] == [0, 1, 2]


def test_the_questions_of_a_pass_all_come_and_then_in_another_order() -> None:
    rolls = source(replace(SETTINGS, prompts=3))
    rounds = [[s.sample_id for s in rolls.next(step(index))[::3]] for index in range(6)]
    first, second = ([id for part in parts for id in part] for parts in (rounds[:3], rounds[3:]))
    assert sorted(first) == sorted(second) == sorted(question.sample.id for question in QUESTIONS)
    assert first != second


def test_a_question_that_comes_twice_in_a_round_is_two_groups() -> None:
    sequences = source(replace(SETTINGS, prompts=12)).next(step())
    groups = {s.group: [other for other in sequences if other.group == s.group] for s in sequences}
    assert [len(group) for group in groups.values()] == [3] * 12
    assert len({s.sample_id for s in sequences}) == 9


def test_any_number_of_ranks_draws_the_same() -> None:
    alone = source().next(step())
    shares = [source(rank=rank, ranks=2).next(step()) for rank in range(2)]
    together = sorted([*shares[0], *shares[1]], key=lambda s: (s.group, len(s)))
    for ours, theirs in zip(sorted(alone, key=lambda s: (s.group, len(s))), together, strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.columns["advantage"].tolist() == theirs.columns["advantage"].tolist()


def test_questions_whose_answers_are_worth_the_same_are_replaced_where_asked_for() -> None:
    mixed_at = 4

    def say(key: int, draw: int) -> str:
        return "9" if mouth.asked <= mixed_at else ("9", "0", "1")[draw]

    mouth = Mouth(say)
    report = step()
    sequences = source(replace(SETTINGS, refills=3), mouth).next(report)
    assert mouth.asked > 4
    groups = {s.group for s in sequences}
    assert all(len({s.scalars["reward"] for s in sequences if s.group == group}) > 1 for group in groups)
    assert len(groups) <= 4
    dead, asked = report.report["dead_groups"]
    assert dead >= 4
    assert asked == mouth.asked


def test_a_round_without_anything_to_tell_apart_is_a_step_that_changes_nothing() -> None:
    sequences = source(replace(SETTINGS, refills=1), Mouth(lambda key, draw: "9")).next(step())
    assert sequences
    assert not any(s.columns["advantage"].any() for s in sequences)


def test_a_round_may_be_learned_from_in_several_steps() -> None:
    rolls = source(replace(SETTINGS, mini_batches=2, epochs=2))
    parts = [rolls.next(step(index, score=scored)) for index in range(4)]
    ids = [sorted(f"{s.group}/{len(s)}" for s in part) for part in parts]
    assert [len(part) for part in parts] == [6] * 4
    assert sorted(ids[0] + ids[1]) == sorted(ids[2] + ids[3])
    assert all(s.columns["old_logprobs"][2:] == pytest.approx(-0.4) for part in parts for s in part)
    assert rolls.answering.generate.asked == 4
    rolls.next(step(4, score=scored))
    assert rolls.answering.generate.asked == 8


def test_a_resumed_round_loses_nothing_and_repeats_nothing(tmp_path: Any) -> None:
    settings = replace(SETTINGS, mini_batches=2, epochs=2)
    whole = source(settings)
    expected = [whole.next(step(index, score=scored)) for index in range(6)]
    first = source(settings)
    for index in range(3):
        first.next(step(index, score=scored))
    torch.save(first.state(), tmp_path / "state.pt")
    second = source(settings)
    second.restore([torch.load(tmp_path / "state.pt", weights_only=True)])
    for index in range(3, 6):
        for ours, theirs in zip(second.next(step(index, score=scored)), expected[index], strict=True):
            assert ours.group == theirs.group
            assert ours.tokens.tolist() == theirs.tokens.tolist()
            assert {k: v.tolist() for k, v in ours.columns.items()} == {
                k: v.tolist() for k, v in theirs.columns.items()
            }


def test_a_state_with_rewards_of_numpy_can_be_read_again(tmp_path: Any) -> None:
    rolls = source(replace(SETTINGS, mini_batches=2))
    rolls.answering = replace(rolls.answering, verify=lambda sample, text: Score(np.mean([text == sample.answer])))
    rolls.next(step(score=scored))
    torch.save(rolls.state(), tmp_path / "state.pt")
    again = source(replace(SETTINGS, mini_batches=2))
    again.restore([torch.load(tmp_path / "state.pt", weights_only=True)])
    assert [s.scalars for s in again.next(step(1, score=scored))] == [s.scalars for s in rolls.next(step(1))]


def test_a_round_may_be_gone_on_with_on_another_number_of_ranks() -> None:
    settings = replace(SETTINGS, mini_batches=2)
    alone = source(settings)
    alone.next(step(score=scored))
    rest = {s.group for s in alone._rounds[0][0]}
    shares = [source(settings, rank=rank, ranks=2) for rank in range(2)]
    for share in shares:
        share.restore([alone.state()])
    found = [{s.group for s in share.next(step(1))} for share in shares]
    assert found[0] | found[1] == rest
    assert not found[0] & found[1]


def test_the_distance_to_the_reference_may_be_a_reward_of_each_token() -> None:
    settings = replace(SETTINGS, kl_in_reward=0.1)
    rolls = source(settings, Mouth(lambda key, draw: "9"), advantage="reinforce++")
    report = step(score=scored)
    (first, *_) = rolls.next(report)
    assert first.columns["k1"][2:] == pytest.approx(0.3)
    advantage = first.columns["advantage"][2:]
    assert (np.diff(advantage) > 0).all()  # fewer penalties are still to come
    total, count = report.report["sampler_gap"]
    assert total / count == pytest.approx(0.1)


def test_answers_that_ran_out_of_tokens_may_be_left_out_of_learning() -> None:
    sequences = source(replace(SETTINGS, truncated="mask")).next(step())
    for sequence in sequences:
        assert sequence.target.any() == (len(sequence) < 6)


def test_a_temperature_goes_with_the_sequence() -> None:
    hot = replace(SETTINGS, sampling=Sampling(temperature=0.7))
    assert source(hot).next(step())[0].scalars["temperature"] == pytest.approx(0.7)
    assert "temperature" not in source().next(step())[0].scalars


def test_an_answer_without_a_reward_is_left_out_and_counted() -> None:
    first = iter(["broken"])
    report = step()
    sequences = source(mouth=Mouth(lambda key, draw: next(first, "0"))).next(report)
    assert len(sequences) == 11
    assert report.report["errors"] == (1, 12)


def test_too_many_answers_without_a_reward_stop_the_run_and_are_kept() -> None:
    seen: list[Any] = []
    rolls = source(mouth=Mouth(lambda key, draw: "broken"), record=lambda rollouts, index: seen.extend(rollouts))
    with pytest.raises(UserError, match=r"12 of 12 answers of step 1 got no reward.*cannot read this"):
        rolls.next(step())
    assert len(seen) == 12


def test_no_step_is_empty_where_fewer_groups_are_left_than_mini_batches() -> None:
    def say(key: int, draw: int) -> str:
        return ("9", "0", "1")[draw] if mouth.asked <= 1 else "9"

    mouth = Mouth(say)
    rolls = source(replace(SETTINGS, prompts=1, refills=1, mini_batches=3), mouth)
    assert rolls.next(step(score=scored))
    assert not rolls._rounds


def test_the_greedy_answer_is_what_a_question_is_compared_with() -> None:
    settings = replace(SETTINGS, greedy=True)
    rolls = source(settings, Mouth(lambda key, draw: str(draw)), advantage="greedy")  # the greedy answer is "0"
    for sequence in rolls.next(step()):
        right = {s.sample.id: s.sample.answer for s in QUESTIONS}[sequence.sample_id]
        expected = sequence.scalars["reward"] - float(right == "0")
        assert sequence.columns["advantage"][2:] == pytest.approx(expected)


def test_where_the_greedy_answer_has_no_reward_nothing_is_compared_with_it() -> None:
    class Lost(Mouth):
        def __call__(self, samples: Any, prompts: Any, n: int, sampling: Sampling, step: Step) -> list[Completion]:
            drawn = super().__call__(samples, prompts, n, sampling, step)
            return [replace(one, text="broken") for one in drawn] if sampling.temperature == 0 else drawn

    with pytest.raises(UserError, match="the greedy answer got no reward: RuntimeError: cannot read this"):
        source(replace(SETTINGS, greedy=True), Lost(), advantage="greedy").next(step())


def test_answers_may_be_learned_from_later_with_what_the_policy_thought_of_them() -> None:
    asked_at_once = source(replace(SETTINGS, prompts=2))
    late = source(replace(SETTINGS, prompts=2, lag=1))
    first = [asked_at_once.next(step(index)) for index in range(3)]
    for index in range(3):
        found = late.next(step(index, score=scored))
        assert [s.sample_id for s in found] == [s.sample_id for s in first[index]]
        assert all(s.columns["old_logprobs"][2:] == pytest.approx(-0.4) for s in found)
    assert late.answering.generate.asked == 2 * 4


def test_late_answers_survive_an_interruption(tmp_path: Any) -> None:
    settings = replace(SETTINGS, prompts=2, lag=2, mini_batches=2)
    whole = source(settings)
    expected = [[s.sample_id for s in whole.next(step(index, score=scored))] for index in range(8)]
    first = source(settings)
    for index in range(3):
        first.next(step(index, score=scored))
    torch.save(first.state(), tmp_path / "state.pt")
    second = source(settings)
    second.restore([torch.load(tmp_path / "state.pt", weights_only=True)])
    assert [[s.sample_id for s in second.next(step(index, score=scored))] for index in range(3, 8)] == expected[3:]


def test_only_the_first_answers_may_be_learned_from_though_all_are_scored() -> None:
    seen: list[Any] = []
    rolls = source(replace(SETTINGS, learned=2), record=lambda rollouts, index: seen.extend(rollouts))
    assert len(rolls.next(step())) == 4 * 2
    assert len(seen) == 4 * 3
    assert [rollout.advantage for rollout in seen[2::3]] == [0.0] * 4


@pytest.mark.parametrize(("choose", "rewards"), [("right", [1.0]), ("best", [1.0]), ("pairs", [1.0, 0.0])])
def test_the_answers_to_imitate_or_to_prefer_are_chosen(choose: Any, rewards: list[float]) -> None:
    settings = replace(SETTINGS, choose=choose, compared=False)
    sequences = source(settings, Mouth(lambda key, draw: str(draw))).next(step())
    for group in {s.group for s in sequences}:
        of_group = [s for s in sequences if s.group == group]
        assert [s.scalars["reward"] for s in of_group] == rewards
        if choose == "pairs":
            assert [s.scalars["chosen"] for s in of_group] == [1, 0]


def test_where_nothing_is_chosen_the_next_questions_are_asked() -> None:
    mouth = Mouth(lambda key, draw: "9" if mouth.asked <= 8 else str(draw))
    assert source(replace(SETTINGS, choose="right", compared=False), mouth).next(step())
    assert mouth.asked == 12


@pytest.mark.parametrize("choose", ["all", "right"])
def test_a_run_that_learns_nothing_stops_and_says_what_to_change(choose: Any) -> None:
    rolls = source(replace(SETTINGS, choose=choose, compared=choose == "all", patience=3), Mouth(lambda k, d: "9"))

    def train() -> None:
        for index in range(4):
            rolls.next(step(index))

    with pytest.raises(UserError, match=r"last 3 rounds.*mean reward is 0\. Give questions.*partial credit"):
        train()


def test_earlier_groups_take_the_place_of_those_worth_the_same() -> None:
    mouth = Mouth(lambda key, draw: str(draw) if mouth.asked <= 4 else "9")
    rolls = source(replace(SETTINGS, replay=3), mouth)
    first = rolls.next(step(0, score=scored))
    second = rolls.next(step(1, score=scored))
    groups = [{s.group for s in part} for part in (first, second)]
    assert len(groups[1]) == 4
    assert len(groups[0] & groups[1]) == 3
    rolls = source(replace(SETTINGS, replay=3), mouth)
    rolls.restore([rolls.state()])


def test_the_groups_that_are_learned_from_again_do_not_depend_on_the_ranks() -> None:
    settings = replace(SETTINGS, replay=3)
    mouth = Mouth(lambda key, draw: str(draw) if key % 3 == 0 else "9")

    def groups(rolls: Rollouts, indices: range, gather: Any = alone) -> list[set[str]]:
        return [{s.group for s in rolls.next(step(index, score=scored, gather=gather))} for index in indices]

    def of_rank(rank: int, gather: Any, begin: int = 0, states: Any = None) -> list[set[str]]:
        rolls = source(settings, mouth, rank=rank, ranks=2)
        if states is not None:
            rolls.restore(states)
        return groups(rolls, range(begin, 6), gather)

    one = source(settings, mouth)
    before = groups(one, range(3))
    state = one.state()
    wanted = before + groups(one, range(3, 6))
    assert len(wanted[0] & wanted[1]) > 0, "nothing was learned from again"
    first, second = on_ranks([[0], [1]], lambda share, gather: of_rank(share[0], gather))
    assert [a | b for a, b in zip(first, second, strict=True)] == wanted
    assert not any(a & b for a, b in zip(first, second, strict=True))
    first, second = on_ranks([[0], [1]], lambda share, gather: of_rank(share[0], gather, 3, [state]))
    assert [a | b for a, b in zip(first, second, strict=True)] == wanted[3:]


def test_the_weight_of_the_kl_follows_its_target() -> None:
    rolls = source(replace(SETTINGS, kl_in_reward=0.1, kl_target=0.1, kl_horizon=120), advantage="reinforce++")
    rolls.next(step(0, score=scored))
    assert rolls.state()["kl_weight"] == pytest.approx(0.1 * (1 + 0.2 * 12 / 120))  # 0.3 nats: three times the target
    fixed = source(replace(SETTINGS, kl_in_reward=0.1), advantage="reinforce++")
    fixed.next(step(0, score=scored))
    assert fixed.state()["kl_weight"] == 0.1


def test_the_scale_of_rewards_goes_on_after_a_restart() -> None:
    settings = replace(SETTINGS, normalise=True)
    rolls, again = (source(settings, advantage="reward") for _ in range(2))
    rolls.next(step())
    again.restore([rolls.state()])
    found = [[s.columns["advantage"].tolist() for s in one.next(step(1))] for one in (rolls, again)]
    assert found[0] == found[1]
    fresh = source(settings, advantage="reward")
    fresh.restore([{**rolls.state(), "asked": 4, "moments": (0.0, 0.0, 0.0)}])
    assert [s.columns["advantage"].tolist() for s in fresh.next(step(1))] != found[0]


def test_a_critics_values_become_advantages_and_returns() -> None:
    rolls = source(replace(SETTINGS, values=True), advantage={"name": "gae", "whiten": False})
    for sequence in rolls.next(step(score=scored)):  # it expects -0.7 everywhere
        own = {name: values[2:] for name, values in sequence.columns.items()}
        assert own["old_values"] == pytest.approx(-0.7)
        assert own["advantage"][-1] == pytest.approx(sequence.scalars["reward"] + 0.7, abs=1e-6)
        assert own["return"] == pytest.approx(own["advantage"] - 0.7, abs=1e-6)


def test_what_an_environment_wrote_is_read_and_not_learned() -> None:
    class Talk(Mouth):
        def _completion(self, index: int, key: int, draw: int) -> Completion:
            whole = super()._completion(index, key, draw)
            own = np.arange(len(whole.tokens)) != 1
            return replace(whole, drawn=own, sampling_logprobs=np.where(own, -0.5, 0).astype(np.float32))

    for sequence in source(replace(SETTINGS, mini_batches=2), Talk()).next(step(score=scored)):
        assert sequence.origin[3] == Origin.ENVIRONMENT
        assert not sequence.target[3]
        assert sequence.columns["advantage"][3] == 0 == sequence.columns["old_logprobs"][3]
        assert sequence.target[2]
        assert sequence.columns["old_logprobs"][2] == pytest.approx(-0.4)


DEMONSTRATED = [replace(question, demonstration=np.arange(10, dtype=np.int32) + 50) for question in QUESTIONS]


def begun(spec: Any, settings: RolloutSettings = SETTINGS, mouth: Mouth | None = None, **more: Any) -> Rollouts:
    return source(settings, mouth, beginning=build_beginning(spec), questions=DEMONSTRATED, **more)


def test_one_answer_of_a_group_may_begin_with_a_demonstration_and_is_weighed_from_there_on() -> None:
    report = step(score=scored)
    rolls = begun({"name": "prefix", "low": 0.5, "high": 0.5}, replace(SETTINGS, mini_batches=2))
    sequences = [*rolls.next(report), *rolls.next(report)]
    groups = {s.group: [other for other in sequences if other.group == s.group] for s in sequences}
    for group in groups.values():
        given = [(s.origin == Origin.DEMONSTRATION).sum() for s in group]
        assert sorted(given) == [0, 0, 5]
        hybrid = group[int(np.argmax(given))]
        assert hybrid.tokens[2:7].tolist() == [50, 51, 52, 53, 54]
        assert hybrid.target[2:].all()
        rewards = np.array([s.scalars["reward"] for s in group])
        expected = hybrid.scalars["reward"] - rewards.mean()
        assert hybrid.columns["advantage"][2:] == pytest.approx(expected)
        assert hybrid.columns["old_logprobs"][2:] == pytest.approx(-0.4)
        assert not hybrid.columns["sampled_logprob"][2:7].any()
    assert report.report["begun"] == (4 * 0.5, 12)
    assert report.report["sampler_gap"][0] == pytest.approx(0.1 * report.report["sampler_gap"][1])


def test_the_distance_to_the_reference_is_that_of_drawn_tokens() -> None:
    report = step(score=scored)
    own = begun({"name": "share", "share": 0.25}, replace(SETTINGS, kl_in_reward=0.1), advantage="reward")
    sequences = own.next(report)
    total, count = report.report["reference_kl"]
    assert count == sum((s.origin == Origin.ROLLOUT).sum() for s in sequences)
    assert total == pytest.approx(0.3 * count)
    for sequence in sequences:
        drawn = sequence.origin == Origin.ROLLOUT
        assert sequence.columns["k1"][drawn] == pytest.approx(0.3)
        assert not sequence.columns["k1"][~drawn].any()


def test_a_reward_sees_what_an_answer_began_with() -> None:
    seen: list[Any] = []
    rolls = begun({"name": "share", "share": 0.25}, record=lambda rollouts, index: seen.extend(rollouts))
    for sequence in rolls.next(step()):
        assert (sequence.origin == Origin.HINT).sum() == 2
    assert all(rollout.attempt.text.startswith("[2]") for rollout in seen)
    assert [rollout.draw for rollout in seen[:3]] == [0, 1, 2]


def test_without_a_demonstration_the_answers_are_the_policys_own() -> None:
    plain = source().next(step())
    own = source(beginning=build_beginning("prefix")).next(step())
    assert [s.tokens.tolist() for s in own] == [s.tokens.tolist() for s in plain]


class Right(Mouth):
    """Always right."""

    def __call__(self, samples: Any, prompts: Any, n: int, sampling: Sampling, step: Step) -> list[Completion]:
        drawn = super().__call__(samples, prompts, n, sampling, step)
        return [replace(one, text=samples[one.prompt].answer) for one in drawn]


def test_hints_become_shorter_where_answers_are_right_and_survive_an_interruption(tmp_path: Any) -> None:
    settings = replace(SETTINGS, n=4)

    def hinted() -> Rollouts:
        return begun({"name": "hint", "rounds": 2}, settings, Right(), text=lambda tokens: "")

    rolls = hinted()
    groups: dict[str, list[int]] = {}
    for sequence in rolls.next(step(0)):
        groups.setdefault(sequence.group, []).append(int((sequence.origin == Origin.HINT).sum()))
    for counts in groups.values():
        assert counts[:2] == [9, 9]
        assert counts[2] == counts[3] < 9
    torch.save(rolls.state(), tmp_path / "state.pt")
    again = hinted()
    again.restore([torch.load(tmp_path / "state.pt", weights_only=True)])
    for index in (1, 2, 3):
        ours, theirs = again.next(step(index)), rolls.next(step(index))
        assert [s.tokens.tolist() for s in ours] == [s.tokens.tolist() for s in theirs]


def test_a_second_batch_is_refused() -> None:
    with pytest.raises(UserError, match="second batch"):
        source().another(step())
