"""Beginnings that answers share are read once, and nothing but the work is another."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig

from posttrain.data import Origin, Sequence
from posttrain.data.batch import cut_sharing, micro_batches
from posttrain.data.prefixes import share_prefixes
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.policy.policy import Reference
from posttrain.training.ranks import Ranks
from posttrain.training.step import Stopwatch, accumulate_gradients, begin, score_sequences

RANKS = Ranks()


def answers(prompt: list[int], group: str, lengths: list[int], seed: int = 0) -> list[Sequence]:
    """Random answers to one prompt, with their advantages."""
    rng = np.random.default_rng([seed, len(prompt)])
    found = []
    for length in lengths:
        tokens = np.array([*prompt, *rng.integers(0, 256, length)], np.int32)
        target = np.arange(len(tokens)) >= len(prompt)
        origin = np.where(target, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8)
        columns = {"advantage": np.where(target, rng.normal(), 0).astype(np.float32)}
        found.append(Sequence(tokens, target, origin, group, group=group, columns=columns))
    return found


def some_step() -> list[Sequence]:
    """Prompts of many lengths (one longer than the models' window, one of a single token), a group of one."""
    rng = np.random.default_rng(1)
    shapes = {"a": (30, [7, 3, 9]), "b": (9, [1, 20]), "c": (1, [4, 4]), "d": (17, [5]), "e": (2, [6, 2])}
    step = []
    for name, (length, lengths) in shapes.items():
        step += answers(rng.integers(0, 256, length).tolist(), name, lengths)
    return step


STEP = some_step()


def one_step(
    policy: Policy, token_budget: int, objective: Any = "grpo", sequences: list[Sequence] = STEP
) -> tuple[float, Tensor]:
    """Loss and gradient."""
    policy.model.zero_grad()
    step = begin(0, 1, 0.0, 0, policy=policy, token_budget=token_budget, ranks=RANKS)
    watch = Stopwatch(policy.device)
    result = accumulate_gradients(policy, build_objective(objective), sequences, token_budget, step, RANKS, watch)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.model.parameters()]
    return result.loss, torch.cat([gradient.flatten() for gradient in gradients])


class Whole(Policy):
    """Reads every sequence from its first token on."""

    @property
    def reads_prefixes(self) -> bool:
        return False


def without_sharing(policy: Policy) -> Policy:
    plain = Whole(policy.model, policy.tokenizer)
    plain.reference = policy.reference
    return plain


def mamba() -> Any:
    """A random model that keeps no keys and values."""
    config = MambaConfig(vocab_size=300, hidden_size=16, state_size=4, num_hidden_layers=2, eos_token_id=257)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_and_gradients_are_those_of_whole_sequences(name: str) -> None:
    policy = Policy(build(name), tokenizer())
    assert policy.reads_prefixes
    plain = without_sharing(policy)
    ours, theirs = (score_sequences(who, 64, RANKS, STEP, ()) for who in (policy, plain))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
    loss, gradient = one_step(plain, 64)
    for token_budget in (1, 30, 64, 1000):
        own_loss, own_gradient = one_step(policy, token_budget)
        assert own_loss == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(own_gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_a_reference_reads_the_prefixes_by_itself() -> None:
    policy = Policy(build("qwen2"), tokenizer())
    policy.keep_reference()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    objective = ["grpo", {"name": "kl", "weight": 0.5, "reduction": "sequences"}]
    expected = one_step(without_sharing(policy), 64, objective)
    loss, found = one_step(policy, 64, objective)
    assert loss == pytest.approx(expected[0], abs=1e-5)
    torch.testing.assert_close(found, expected[1], rtol=1e-4, atol=1e-5)


def test_adapters_that_are_off_for_the_reference_read_the_prefixes_twice() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build("qwen2"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    policy = Policy(model, tokenizer())
    policy.keep_reference()
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    objective = ["grpo", {"name": "kl", "weight": 0.5, "reduction": "sequences"}]
    expected = one_step(without_sharing(policy), 64, objective)
    loss, found = one_step(policy, 64, objective)
    assert loss == pytest.approx(expected[0], abs=1e-5)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected[1], rtol=1e-4, atol=1e-5)


def test_each_prefix_is_read_once() -> None:
    policy = Policy(build("qwen2"), tokenizer())
    assert policy.reads_prefixes
    read: list[tuple[int, ...]] = []
    handle = policy.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sequences = answers(list(range(40)), "a", [8] * 6) + answers(list(range(50, 90)), "b", [8] * 6)
    one_step(policy, 160, sequences=sequences)
    handle.remove()
    assert read[0] == (2, 39)
    assert sum(rows for rows, width in read[1:]) == 12
    assert {width for _, width in read[1:]} == {8}


def test_pairs_stay_together_and_share_their_prompt() -> None:
    policy = Policy(build("llama"), tokenizer())
    chosen: dict[str, list[Sequence]] = {}
    for sequence in STEP:
        chosen.setdefault(sequence.group, []).append(sequence)
    step = [
        replace(sequence, scalars={"chosen": float(place == 0)})
        for group in chosen.values()
        if len(group) > 1
        for place, sequence in enumerate(group[:2])
    ]
    expected = one_step(without_sharing(policy), 40, "simpo", step)
    found = one_step(policy, 40, "simpo", step)
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)


def test_models_that_keep_no_keys_and_values_read_whole_sequences() -> None:
    policy = Policy(mamba(), tokenizer())
    assert not policy.reads_prefixes
    assert torch.isfinite(one_step(policy, 64)[1]).all()
    checkpointed = build("qwen2")
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    assert not Policy(checkpointed, tokenizer()).reads_prefixes


def test_a_reference_or_a_critic_that_keeps_none_has_whole_sequences_read_too() -> None:
    policy = Policy(build("qwen2"), tokenizer())
    assert policy.reads_prefixes
    policy.reference = Reference.of(Policy(mamba(), tokenizer()))
    assert not policy.reads_prefixes
    policy.reference = None
    policy.add_critic()
    assert policy.reads_prefixes
    policy.add_critic(mamba())
    assert not policy.reads_prefixes


def test_long_answers_to_short_prompts_are_not_worth_it() -> None:
    assert share_prefixes(answers([1, 2, 3], "a", [50, 60]), 100)[0][0] is None
    assert share_prefixes(answers(list(range(30)), "a", [50, 60]), 100)[0][0] is not None


def test_what_is_shared_ends_where_sequences_differ_or_before_the_last_token_of_the_prompt() -> None:
    one, other = answers(list(range(20)), "a", [3, 4])
    prefixes, _ = share_prefixes([one, other], 100)[0]
    assert prefixes is not None
    assert prefixes.length(one) == 19
    tokens = other.tokens.copy()
    tokens[10] = 255
    prefixes, _ = share_prefixes([one, replace(other, tokens=tokens)], 100)[0]
    assert prefixes is not None
    assert prefixes.length(one) == 10
    noisy = replace(other, inputs=other.tokens)
    assert share_prefixes([one, noisy], 100)[0][0] is None


@given(
    st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 12), min_size=1, max_size=5)), max_size=6),
    st.integers(2, 80),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_sequence_is_in_one_micro_batch_within_the_budget(
    shapes: list[tuple[int, list[int]]], token_budget: int, keep_groups: bool
) -> None:
    step = [s for n, (prompt, lengths) in enumerate(shapes) for s in answers([n] * prompt, f"g{n}", lengths)]
    if not step:
        assert cut_sharing(step, token_budget) == [(None, [])]
        return
    cut = cut_sharing(step, token_budget, keep_groups=keep_groups)
    assert sorted(row for _, parts in cut for part in parts for row in part) == list(range(len(step)))
    for prefixes, parts in cut:
        if prefixes is None:
            continue
        assert prefixes.input_ids.numel() <= token_budget // 2 or len(prefixes.input_ids) == 1
        for part in parts:
            width = max(prefixes.rest(step[row]) for row in part)
            whole = len({step[row].group for row in part}) == 1 if keep_groups else len(part) == 1
            assert width * len(part) <= token_budget // 2 or whole
    if len(cut) == 1 and cut[0][0] is None:
        assert cut[0][1] == micro_batches(step, token_budget, keep_groups=keep_groups)
