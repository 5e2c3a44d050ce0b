"""Reward models as policies: what they give, and what they refuse."""

from pathlib import Path

import pytest
import torch
from architectures import tokenizer
from running import save_tiny
from steps import random_step
from transformers import AutoModelForSequenceClassification

from posttrain.data.batch import collate
from posttrain.data.scores import ENTROPY, REWARDS
from posttrain.data.whole_answer import whole_answer
from posttrain.errors import UserError
from posttrain.policy import ModelOptions, Policy, Reference


def judge(folder: Path, architecture: str = "llama") -> Policy:
    """One that is new, with a head that says something."""
    policy = Policy.load(str(save_tiny(folder, architecture)), ModelOptions(reward=True))
    assert float(policy.model.score.weight.detach().abs().sum()) == 0
    torch.nn.init.normal_(policy.model.score.weight, generator=torch.Generator().manual_seed(0))
    return policy


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_saved_reward_model_is_one_again_and_is_what_transformers_opens(architecture: str, tmp_path: Path) -> None:
    policy = judge(tmp_path / "base", architecture)
    policy.save(tmp_path / "judge")
    again = Policy.load(str(tmp_path / "judge"))
    sequences = random_step(0, [5, 9, 7])
    batch = collate([whole_answer(sequence) for sequence in sequences])
    found = policy.scores(batch, (REWARDS,))["rewards"]
    assert torch.equal(again.scores(batch, (REWARDS,))["rewards"], found)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge")
    for sequence, value in zip(sequences, found.tolist(), strict=True):
        tokens = torch.from_numpy(whole_answer(sequence).tokens[:-1]).long()[None]
        assert theirs(input_ids=tokens).logits.item() == pytest.approx(value, abs=1e-5)


def test_padding_that_also_ends_answers_is_not_skipped(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    words = tokenizer()
    words.pad_token = words.eos_token
    words.save_pretrained(folder)
    assert Policy.load(str(folder), ModelOptions(reward=True)).model.config.pad_token_id is None


def test_a_reward_model_has_no_next_token_and_a_language_model_no_reward(tmp_path: Path) -> None:
    policy = judge(tmp_path)
    batch = collate([whole_answer(sequence) for sequence in random_step(0, [5])])
    with pytest.raises(UserError, match="no entropy"):
        policy.scores(batch, (REWARDS, ENTROPY))
    with pytest.raises(UserError, match="no next token"):
        Reference.of(policy)
    with pytest.raises(UserError, match="no reward head"):
        Policy.load(str(tmp_path)).scores(batch, (REWARDS,))
