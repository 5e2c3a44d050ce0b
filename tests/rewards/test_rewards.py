from dataclasses import replace

import numpy as np
import pytest
import torch

from posttrain.data import Sample, user
from posttrain.data.scores import TokenScores
from posttrain.errors import UserError
from posttrain.rewards import (
    Attempt,
    Moment,
    Score,
    build_reward,
    group_reward,
    is_right,
    model_reward,
    reward,
    reward_models,
    reward_names,
)

PROMPT = np.array([1, 2], np.int32)
QUESTION = Sample((user("6 * 7?"),), answer="42")


def verify(sample, text):
    found = text.rpartition("=")[2].strip()
    if found == "crash":
        raise RuntimeError("no such number")
    return Score(float(found == sample.answer), info={"extracted": found or None})


def attempt(text="= 42", length=4, finish="stop", verify=verify):
    return Attempt(QUESTION, text, np.zeros(length, np.int32), np.zeros(length, np.float32), finish, verify, PROMPT)


def scores(spec, *attempts, progress=0.0):
    (found,) = build_reward(spec)([list(attempts)], Moment(progress))
    return found


def values(spec, *attempts, progress=0.0):
    return [score.value for score in scores(spec, *attempts, progress=progress)]


@reward("test_tokens")
def tokens(attempt: Attempt, *, each: float = 1.0) -> float:
    return each * attempt.length


@reward("test_hang")
def hang(attempt: Attempt) -> float:
    while attempt.text == "slow":
        pass
    return 1.0


@group_reward("test_rank")
def rank(attempts, progress):
    return [index + progress for index, _ in enumerate(attempts)]


@group_reward("test_short_list")
def short_list(attempts, progress):
    return [1.0]


@reward("test_broken")
def broken(attempt):
    raise RuntimeError("broken")


def test_right_is_the_full_mark_however_it_was_added_up():
    summed = sum([0.1] * 10)
    assert summed < 1
    assert Score(summed).right
    assert is_right(summed)
    assert not Score(0.999).right
    assert not Score(1.0, error="why").right
    assert is_right(0.5, at=0.5)
    almost = replace(attempt(), verify=lambda sample, text: Score(summed))
    for spec in ("partial_credit", {"name": "tldr", "stop": "", "strength": 0.0}):
        assert values(spec, almost)[0] > 0.9


def test_the_task_says_what_is_right():
    assert values("task", attempt("= 42"), attempt("= 41")) == [1, 0]


def test_parts_are_weighted_added_and_kept_by_name():
    spec = ["task", {"name": "test_tokens", "weight": 0.1, "each": 2.0}]
    (score,) = scores(spec, attempt(length=3))
    assert score.value == pytest.approx(1.6)
    assert score.parts == pytest.approx({"task": 1.0, "test_tokens": 0.6})
    assert score.info["extracted"] == "42"


def test_a_gate_shuts_a_part_where_it_is_0():
    spec = ["task", {"name": "test_tokens", "gate": "task"}]
    assert values(spec, attempt("= 42"), attempt("= 1")) == [5, 0]
    (broken,) = scores({"name": "test_tokens", "gate": "task"}, attempt("= crash"))
    assert broken.error == "RuntimeError: no such number"


def test_behind_a_shut_gate_a_part_is_0_whatever_goes_wrong_in_it():
    spec = ["task", {"name": "test_broken", "gate": "task"}]
    right, wrong = scores(spec, attempt("= 42"), attempt("= 1"))
    assert right.error == "RuntimeError: broken"
    assert (wrong.error, wrong.value) == (None, 0)


def test_a_part_may_count_for_a_while_only():
    spec = ["task", {"name": "test_tokens", "since": 0.25, "until": 0.5}]
    assert [values(spec, attempt(), progress=at)[0] for at in (0.0, 0.25, 0.49, 0.5)] == [1, 5, 5, 1]


def test_a_reward_of_all_attempts_sees_them_all_and_the_moment():
    assert values("test_rank", attempt(), attempt(), progress=0.5) == [0.5, 1.5]
    with pytest.raises(ValueError, match="1 scores of 2 attempts"):
        values("test_short_list", attempt(), attempt())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_an_error_and_no_zero(value):
    (score,) = scores({"name": "test_tokens", "each": value}, attempt())
    assert "the reward is" in score.error


def test_numpy_numbers_of_a_reward_become_plain_ones_which_checkpoints_can_keep():
    counted = Score(np.float64(0.5), {"words": np.float32(2.0)}, tokens=tuple(np.full(4, 0.125)))
    (score,) = scores({"name": "task", "weight": 2}, attempt(verify=lambda sample, text: counted))
    assert [type(number) for number in (score.value, *score.parts.values(), *score.tokens)] == [float] * 7
    assert (score.value, score.parts["task/words"], score.tokens) == (1.0, 2.0, (0.25,) * 4)


def test_errors_are_kept_with_their_cause():
    crashed, fine = scores("task", attempt("= crash"), attempt())
    assert crashed.error == "RuntimeError: no such number"
    assert fine.error is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "empty list"),
        ("tsk", "unknown reward 'tsk'.*task"),
        ({"name": "test_tokens", "eech": 1}, "unknown option 'eech'"),
        ({"name": "task", "since": 0.5, "until": 0.2}, "shares of the run"),
        ({"name": "task", "weight": "much"}, "'weight' must be a number, found 'much'"),
        (["task", "task"], "there twice"),
    ],
)
def test_a_wrong_recipe_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        build_reward(spec)


def test_golden_numbers_of_the_soft_penalty_of_length():
    spec = {"name": "overlong", "longest": 20480, "margin": 4096}
    found = values(spec, *(attempt(length=size) for size in (16000, 16384, 18432, 20480, 21000)))
    assert found == [0, 0, -0.5, -1, -1]


def test_length_falls_in_a_line_or_half_a_cosine():
    sizes = (0, 25, 50, 100, 200)
    linear = {"name": "length", "longest": 100}
    assert values(linear, *(attempt(length=size) for size in sizes)) == [1, 0.75, 0.5, 0, 0]
    cosine = {"name": "length", "longest": 100, "shape": "cosine", "at_0": 2.0, "at_end": 1.0}
    assert values(cosine, *(attempt(length=size) for size in sizes)) == pytest.approx([2, 1.853553, 1.5, 1, 1])


def test_relative_length_is_between_the_shortest_and_the_longest():
    assert values("relative_length", attempt(length=10), attempt(length=15), attempt(length=20)) == [0.5, 0, -0.5]
    assert values("relative_length", attempt(length=7), attempt(length=7)) == [0, 0]


def test_the_majority_is_right_without_a_label():
    answers = [attempt(f"= {value}") for value in ("3", "5", "5", "", "3", "5")]
    assert values("majority", *answers) == [0, 1, 1, 0, 0, 1]
    assert values("majority", attempt("="), attempt("=")) == [0, 0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("x <think></think> y <answer>1</answer> z", 1),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("<think>a</think><answer>b", 0),
        ("<think>a</think><think>c</think><answer>b</answer>", 0),
        ("", 0),
    ],
)
def test_tags_come_once_each_in_order(text, value):
    assert values({"name": "tags", "order": ["think", "answer"]}, attempt(text)) == [value]


def test_an_answer_that_ran_out_of_tokens_is_not_finished():
    assert values("finished", attempt(), attempt(finish="length")) == [1, 0]


def test_the_names_of_a_reward_include_those_of_its_gates():
    spec = ["finished", {"name": "length", "longest": 9, "gate": {"name": "task", "gate": "tags"}}]
    assert reward_names(spec) == {"finished", "length", "task", "tags"}


@model_reward("test_likely", models=("model",))
def likely(attempts, ask, *, model: str, count: int = 0):
    return [float(found.logprobs.sum()) for found in ask(model, [a.sequence for a in attempts], ())][count:]


def asked(answers):
    """Says `answers[model]` of every drawn token, and counts how often it is asked."""

    def ask(model, sequences, needs):
        ask.calls += 1
        return [TokenScores(torch.full((s.targets,), answers[model])) for s in sequences]

    ask.calls = 0
    return ask


def test_models_are_asked_once_for_all_attempts_of_a_round():
    ask = asked({"judge": -0.5})
    found = build_reward({"name": "test_likely", "model": "judge"})(
        [[attempt(length=2), attempt(length=4)], [], [attempt(length=6)]], Moment(0.0, ask)
    )
    assert [[score.value for score in group] for group in found] == [[-1, -2], [], [-3]]
    assert ask.calls == 1
    with pytest.raises(ValueError, match="0 scores of 1 attempts"):
        build_reward({"name": "test_likely", "model": "judge", "count": 1})([[attempt()]], Moment(0.0, ask))


def test_the_models_of_a_reward_are_known_before_anything_runs():
    spec = ["task", {"name": "log_ratio", "model": "sft", "gate": {"name": "test_likely", "model": "judge"}}]
    assert reward_models(spec) == ["sft", "base", "judge"]


def test_golden_log_ratio_of_a_tuned_model_and_its_base():
    def ask(model, sequences, needs):
        said = {"sft": [-0.2, -0.3, -0.1], "base": [-1.2, -0.9, -0.4]}
        return [TokenScores(torch.tensor(said[model], dtype=torch.float64)) for _ in sequences]

    (found,) = build_reward({"name": "log_ratio", "model": "sft"})([[attempt(length=3)]], Moment(0.0, ask))
    assert found[0].value == pytest.approx(1.9)
    (same,) = build_reward({"name": "log_ratio", "model": "sft", "base": "sft"})([[attempt(length=3)]], Moment(0, ask))
    assert same[0].value == 0


def test_a_reward_that_hangs_costs_its_answer_and_not_the_run():
    moment = Moment(time_limit=0.2)
    (found,) = build_reward("test_hang")([[attempt("quick"), attempt("slow"), attempt("quick")]], moment)
    assert [score.error for score in found] == [None, "TimeoutError: it took more than 0.2 s", None]
