from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build, tokenizer
from steps import random_step
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data import Sequence
from posttrain.data.batch import Layout, collate
from posttrain.data.scores import ENTROPY, FORWARD_KL, REFERENCE_LOGPROBS, Need
from posttrain.errors import UserError
from posttrain.policy import ModelOptions, Policy, Reference

STEP = random_step(0, [20, 7, 1, 33])
EVERY_ARCHITECTURE = pytest.mark.parametrize("name", ARCHITECTURES)


def batch_of(step: list[Sequence], layout: Layout = "padded") -> Any:
    return collate(step, pad_id=258, layout=layout)


def plain_logprobs(model: Any, step: list[Sequence]) -> Tensor:
    """`log_softmax` of the model's own logits, one sequence at a time."""
    parts = []
    for sequence in step:
        ids = torch.from_numpy(sequence.tokens).long()
        at = torch.from_numpy(np.flatnonzero(sequence.target))
        parts.append(model(input_ids=ids[None]).logits[0].float().log_softmax(-1)[at - 1, ids[at]])
    return torch.cat(parts)


def gradient(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def with_adapters(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options))


def take_a_step(policy: Policy) -> None:
    """One large update of everything that is trainable."""
    parameters = [parameter for _, parameter in policy.trainable_parameters()]
    optimiser = torch.optim.SGD(parameters, lr=1.0)
    (-policy.scores(batch_of(STEP)).logprobs.mean()).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    policy.model.zero_grad()


@EVERY_ARCHITECTURE
@torch.no_grad()
def test_scores_are_the_log_softmax_of_the_models_own_logits(name: str) -> None:
    model = build(name)
    policy = Policy(model, tokenizer())
    expected = plain_logprobs(model, STEP)
    for layout in ("padded", "packed"):
        found = policy.scores(batch_of(STEP, layout)).logprobs
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5, msg=layout)


@EVERY_ARCHITECTURE
def test_gradients_are_those_of_the_models_own_logits(name: str) -> None:
    model = build(name)
    plain_logprobs(model, STEP).sum().backward()  # type: ignore[no-untyped-call]
    expected = gradient(model)
    for layout in ("padded", "packed"):
        model.zero_grad()
        Policy(model, tokenizer()).scores(batch_of(STEP, layout)).logprobs.sum().backward()  # type: ignore[no-untyped-call]
        assert float((gradient(model) - expected).norm() / expected.norm()) < 2e-5


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("layout", ["padded", "packed"])
@torch.no_grad()
def test_scores_do_not_depend_on_the_neighbours_in_a_batch(name: str, layout: Layout) -> None:
    policy = Policy(build(name), tokenizer())
    whole = policy.scores(batch_of(STEP, layout)).logprobs
    others = [replace(STEP[0], tokens=STEP[0].tokens[::-1].copy()), *STEP[1:]]
    changed = policy.scores(batch_of(others, layout)).logprobs
    first = STEP[0].targets
    torch.testing.assert_close(changed[first:], whole[first:], rtol=0, atol=2e-5)
    assert float((changed[:first] - whole[:first]).abs().max()) > 0.1


@EVERY_ARCHITECTURE
@torch.no_grad()
def test_embeddings_of_the_tokens_give_the_scores_of_the_tokens(name: str) -> None:
    policy = Policy(build(name), tokenizer())
    for layout in ("padded", "packed"):
        batch = batch_of(STEP, layout)
        embeddings = policy.embed(batch.rows.input_ids)
        found = policy.scores(batch, embeddings=embeddings).logprobs
        torch.testing.assert_close(found, policy.scores(batch).logprobs, rtol=0, atol=1e-6)


def test_gradients_reach_the_embeddings_that_are_given() -> None:
    policy = Policy(build("llama"), tokenizer())
    batch = batch_of(STEP)
    embeddings = policy.embed(batch.rows.input_ids).detach().requires_grad_()
    policy.scores(batch, embeddings=embeddings).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert embeddings.grad is not None
    assert embeddings.grad[0, 0].any()
    assert not embeddings.grad[1, len(STEP[1]) :].any()


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    model = build(name).train()
    policy, batch = Policy(model, tokenizer()), batch_of(STEP)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        policy.scores(batch, (ENTROPY,)).logprobs.sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(gradient(model))
    assert torch.equal(*gradients)


@EVERY_ARCHITECTURE
@torch.no_grad()
def test_a_saved_model_opens_in_transformers_with_the_same_scores(name: str, tmp_path: Path) -> None:
    policy = Policy(build(name), tokenizer())
    policy.save(tmp_path / "model")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    expected = policy.scores(batch_of(STEP)).logprobs
    torch.testing.assert_close(plain_logprobs(opened, STEP), expected, rtol=0, atol=2e-5)
    assert torch.equal(Policy.load(str(tmp_path / "model")).scores(batch_of(STEP)).logprobs, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == policy.tokenizer.chat_template


def test_saving_replaces_the_folder_that_was_there_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    (tmp_path / "model.partial").mkdir()
    Policy(build("gpt2"), tokenizer()).save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (folder / "old.txt").exists()


@pytest.mark.parametrize("limit", [1000, 100_000], ids=["small", "larger"])
def test_a_full_disk_leaves_the_old_model_and_one_message(tmp_path: Path, limit: int) -> None:
    resource = pytest.importorskip("resource")
    policy = Policy(build("llama"), tokenizer())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the model to '.*model'"):
            policy.save(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "old.txt").read_text() == "old"


def test_autocast_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    model = build("llama")
    exact = Policy(model, tokenizer())
    mixed = Policy(model, tokenizer(), autocast=True)
    expected = exact.scores(batch_of(STEP)).logprobs
    expected.sum().backward()  # type: ignore[no-untyped-call]
    exact_gradient = gradient(model)
    model.zero_grad()
    found = mixed.scores(batch_of(STEP)).logprobs
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert found.dtype == gradient(model).dtype == torch.float32
    assert 0 < float((found - expected).detach().abs().max()) < 1.0
    assert float(torch.cosine_similarity(gradient(model), exact_gradient, dim=0)) > 0.99


@pytest.mark.parametrize("adapters", [False, True], ids=["copy", "adapters off"])
def test_a_reference_is_the_model_as_it_was(adapters: bool) -> None:
    model = build("llama")
    policy = Policy(with_adapters(model) if adapters else model, tokenizer())
    policy.model.train()
    policy.keep_reference()
    assert policy.reference is not None
    assert (policy.reference.model is policy.model) == adapters
    start = policy.scores(batch_of(STEP), (FORWARD_KL, REFERENCE_LOGPROBS))
    assert not start["forward_kl"].any()
    torch.testing.assert_close(start["reference_logprobs"], start.logprobs.detach(), rtol=0, atol=1e-6)
    trained = {name for name, _ in policy.trainable_parameters()}
    take_a_step(policy)
    after = policy.scores(batch_of(STEP), (FORWARD_KL, REFERENCE_LOGPROBS))
    assert torch.equal(after["reference_logprobs"], start["reference_logprobs"])
    assert float(after["forward_kl"].detach().mean()) > 1e-3
    assert policy.model.training
    assert {name for name, _ in policy.trainable_parameters()} == trained


@pytest.mark.parametrize("adapters", [False, True], ids=["copy", "adapters off"])
def test_a_reference_has_no_dropout_while_the_policy_has(adapters: bool) -> None:
    model: Any = build("gpt2")
    if adapters:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"]))
    policy = Policy(model, tokenizer())
    expected = policy.scores(batch_of(STEP)).logprobs.detach()
    policy.model.train()
    policy.keep_reference()
    assert policy.reference is not None
    assert (policy.reference.model is policy.model) == adapters
    scores = policy.scores(batch_of(STEP), (REFERENCE_LOGPROBS,))
    torch.testing.assert_close(scores["reference_logprobs"], expected, rtol=0, atol=1e-5)
    assert float((scores.logprobs.detach() - expected).abs().max()) > 0.01


def test_a_copied_reference_shares_no_weight_with_the_policy_and_takes_no_gradient() -> None:
    policy = Policy(build("qwen2"), tokenizer())
    policy.keep_reference()
    assert policy.reference is not None
    ours = {parameter.data_ptr() for parameter in policy.model.parameters()}
    theirs = list(policy.reference.model.parameters())
    assert not ours & {parameter.data_ptr() for parameter in theirs}
    policy.scores(batch_of(STEP), (FORWARD_KL,))["forward_kl"].sum().backward()  # type: ignore[no-untyped-call]
    assert not any(parameter.requires_grad for parameter in theirs)
    assert all(parameter.grad is None for parameter in theirs)


def test_adapters_that_were_trained_before_are_part_of_the_reference() -> None:
    policy = Policy(with_adapters(build("llama"), init_lora_weights=False), tokenizer())
    policy.keep_reference()
    scores = policy.scores(batch_of(STEP), (FORWARD_KL,))
    assert float(scores["forward_kl"].detach().abs().max()) < 1e-6


def test_switching_adapters_off_leaves_frozen_adapter_weights_frozen() -> None:
    model = with_adapters(build("llama"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    policy = Policy(model, tokenizer())
    policy.keep_reference()
    policy.scores(batch_of(STEP), (FORWARD_KL,))["forward_kl"].sum().backward()  # type: ignore[no-untyped-call]
    assert all("lora_B" in name for name, _ in policy.trainable_parameters())


def test_adapters_on_the_head_itself_are_off_in_the_reference() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    policy = Policy(model, tokenizer())
    policy.keep_reference()
    with torch.no_grad():
        start = policy.scores(batch_of(STEP)).logprobs
    take_a_step(policy)
    scores = policy.scores(batch_of(STEP), (FORWARD_KL, REFERENCE_LOGPROBS))
    torch.testing.assert_close(scores["reference_logprobs"], start, rtol=0, atol=1e-5)
    (-scores["forward_kl"].sum()).backward()  # type: ignore[no-untyped-call]
    assert gradient(model).any()


def test_another_model_as_reference_gives_its_own_log_probs() -> None:
    policy, other = (Policy(build("llama", seed), tokenizer()) for seed in (0, 1))
    policy.reference = Reference.of(other)
    found = policy.scores(batch_of(STEP), (REFERENCE_LOGPROBS,))["reference_logprobs"]
    with torch.no_grad():
        torch.testing.assert_close(found, other.scores(batch_of(STEP)).logprobs)


def test_a_cached_column_stands_in_for_the_reference() -> None:
    cached = [replace(s, columns={"reference_logprobs": np.arange(len(s), dtype=np.float32)}) for s in STEP]
    policy = Policy(build("llama"), tokenizer())
    batch = batch_of(cached)
    assert torch.equal(policy.scores(batch, (REFERENCE_LOGPROBS,))["reference_logprobs"], batch.position.float())


def test_a_cached_column_never_stands_in_for_what_needs_a_gradient() -> None:
    cached = [replace(s, columns={"forward_kl": np.zeros(len(s), np.float32)}) for s in STEP]
    policy = Policy(build("llama"), tokenizer())
    policy.reference = Reference.of(Policy(build("llama", 1), tokenizer()))
    found = policy.scores(batch_of(cached), (FORWARD_KL,))["forward_kl"]
    assert found.requires_grad
    assert found.detach().all()


def test_a_policy_without_a_reference_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="the policy has none"):
        Policy(build("llama"), tokenizer()).scores(batch_of(STEP), (FORWARD_KL,))


def test_adapters_are_all_that_is_trained_and_saved_and_are_merged_when_loaded(tmp_path: Path) -> None:
    base = Policy(build("llama"), tokenizer())
    base.save(tmp_path / "base")
    policy = Policy(with_adapters(Policy.load(str(tmp_path / "base")).model), tokenizer())
    assert all("lora" in name for name, _ in policy.trainable_parameters())
    take_a_step(policy)
    policy.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = Policy.load(str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = policy.scores(batch_of(STEP)).logprobs
        torch.testing.assert_close(loaded.scores(batch_of(STEP)).logprobs, expected, rtol=0, atol=1e-4)
        assert not torch.allclose(base.scores(batch_of(STEP)).logprobs, expected, atol=1e-3)
    assert len(list(loaded.trainable_parameters())) == len(list(base.trainable_parameters()))
    loaded.save(tmp_path / "merged")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(plain_logprobs(opened, STEP), expected, rtol=0, atol=1e-4)


def test_a_need_of_ones_own_is_computed_inside_the_head() -> None:
    second = Need("second", lambda chunk: chunk.log_softmax.topk(2).values[:, 1])
    policy = Policy(build("gemma3_softcap"), tokenizer())
    scores = policy.scores(batch_of(STEP), (second,))
    assert scores["second"].shape == scores.logprobs.shape
    assert scores["second"].requires_grad


def test_a_compiled_model_gives_the_same_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are captured and run as ever; code for this machine, which takes minutes to make, is left out."""
    compiling = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kw: compiling(self, backend="eager", **kw))
    policy = Policy(build("llama"), tokenizer())
    policy.save(tmp_path / "model")
    compiled = Policy.load(str(tmp_path / "model"), ModelOptions(compile=True))
    captured = torch._dynamo.utils.counters["frames"]["ok"]
    expected, found = (p.scores(batch_of(STEP)).logprobs for p in (policy, compiled))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(gradient(compiled.model), gradient(policy.model), rtol=1e-3, atol=1e-3)
    assert torch._dynamo.utils.counters["frames"]["ok"] > captured


def test_the_head_knows_how_many_of_its_rows_have_a_token() -> None:
    policy = Policy(build("llama"), tokenizer())
    assert policy.head is not None
    assert policy.head.words == len(tokenizer())
    rows = policy.language_head.projection.weight.shape[0]
    assert policy.head.words <= rows
