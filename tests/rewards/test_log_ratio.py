"""Golden numbers of sheet 15 (arXiv 2510.21090), checks 1, 2, 5 and 7, and the switches of the reward `log_ratio`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from posttrain.data import Sample, user
from posttrain.data.scores import TokenScores
from posttrain.errors import UserError
from posttrain.rewards import Attempt, Moment, Score, build_reward, reward

SAID = {"sft": [-0.2, -0.3, -0.1], "base": [-1.2, -0.9, -0.4]}


def attempt(length: int = 3, finish: Literal["stop", "length"] = "stop") -> Attempt:
    tokens = np.arange(length, dtype=np.int32)
    logprobs = np.array(SAID["sft"][:length], np.float32)
    return Attempt(Sample((user("?"),)), "", tokens, logprobs, finish, prompt=np.array([1, 2], np.int32))


def scores(*attempts: Attempt, said: Mapping[str, list[float]] = SAID, **options: Any) -> list[Score]:
    def ask(model: str | None, sequences: Any, needs: Any) -> list[TokenScores]:
        assert model in said, "the reward depends on frozen models only, never on the policy as it is"
        return [TokenScores(torch.tensor(said[model])[: sequence.targets]) for sequence in sequences]

    (found,) = build_reward({"name": "log_ratio", "model": "sft", **options})([list(attempts)], Moment(ask=ask))
    return found


@reward("test_nothing")
def nothing(attempt: Attempt) -> float:
    return 0.0


@reward("test_two_tokens")
def two_tokens(attempt: Attempt) -> Score:
    return Score(2.0, tokens=(1.0, 1.0))


def test_golden_log_ratio_and_the_end_tokens_share() -> None:
    (found,) = scores(attempt())
    assert found.value == pytest.approx(1.9)
    assert found.parts["log_ratio/end"] == pytest.approx(0.3)
    assert found.tokens == ()
    (same,) = scores(attempt(), base="sft")
    assert same.value == same.parts["log_ratio/end"] == 0


def test_before_the_first_update_the_policy_is_the_tuned_model() -> None:
    (found,) = scores(attempt())
    assert found.value == pytest.approx(float(attempt().logprobs.sum()) - sum(SAID["base"]))


def test_golden_answer_of_an_end_alone() -> None:
    for placement in ("end", "tokens"):
        (found,) = scores(attempt(1), placement=placement)
        assert found.value == pytest.approx(1.0)
        assert found.parts["log_ratio/end"] == pytest.approx(1.0)


def test_the_reward_is_a_number_without_a_way_back() -> None:
    (found,) = scores(attempt(), placement="tokens")
    assert type(found.value) is float
    assert {type(token) for token in found.tokens} == {float}


def test_increments_of_tokens_add_up_to_the_same() -> None:
    (found,) = scores(attempt(), placement="tokens", weight=2.0)
    assert found.value == pytest.approx(3.8)
    assert found.tokens == pytest.approx([2.0, 1.2, 0.6])


def test_what_an_answer_was_given_to_begin_with_earns_nothing() -> None:
    begun = replace(attempt(), begun=1, drawn=np.array([False, True, True]))
    (found,) = scores(begun, placement="tokens")
    assert found.value == pytest.approx(0.9)
    assert found.tokens == pytest.approx([0.6, 0.3])


def test_answers_without_an_end_have_their_ratio_or_a_penalty() -> None:
    cut = attempt(finish="length")
    whole, kept = scores(attempt(), cut)
    assert kept.value == whole.value
    assert "log_ratio/end" not in kept.parts
    for placement in ("end", "tokens"):
        whole, punished = scores(attempt(), cut, truncated=-3.0, placement=placement)
        assert (punished.value, punished.tokens) == (-3.0, ())
        assert whole.value == pytest.approx(1.9)


@pytest.mark.parametrize("options", [{"placement": "ends"}, {"truncated": "mask"}, {"modle": "sft"}])
def test_other_switches_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        scores(attempt(), **options)


def test_token_rewards_are_added_gated_and_counted() -> None:
    both = build_reward(["test_two_tokens", {"name": "test_two_tokens_too", "weight": 0.5}, "test_nothing"])
    ((found,),) = both([[attempt(2)]], Moment())
    assert (found.value, found.tokens) == (3.0, (1.5, 1.5))
    ((gated,),) = build_reward({"name": "test_two_tokens", "gate": "test_nothing"})([[attempt(2)]], Moment())
    assert (gated.value, gated.tokens) == (0.0, ())
    ((lacking,),) = build_reward("test_two_tokens")([[attempt(3)]], Moment())
    assert lacking.error == "ValueError: 2 token rewards were given to an answer of 3 tokens"


reward("test_two_tokens_too")(two_tokens)
