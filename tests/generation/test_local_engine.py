"""The in-process engine against plain forward passes and transformers' own `generate`."""

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from architectures import ARCHITECTURES, CONTEXT, IM_END, build, tokenizer
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, PreTrainedModel

from posttrain.errors import UserError
from posttrain.generation import Completion, Prompt, Sampling
from posttrain.generation.local import LocalEngine
from posttrain.generation.slots import SlotCache

TOKENIZER = tokenizer()


def prompts(*lengths: int, seed: int = 0) -> list[Prompt]:
    generator = np.random.default_rng(seed)
    return [Prompt(generator.integers(0, 256, size=length).astype(np.int32)) for length in lengths]


def plain_logprobs(model: Any, prompt: Prompt, completion: Completion) -> npt.NDArray[np.float32]:
    tokens = torch.from_numpy(np.concatenate([prompt.tokens, completion.tokens]).astype(np.int64))
    with torch.no_grad():
        logprobs = model(input_ids=tokens[None]).logits[0, len(prompt.tokens) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, tokens[len(prompt.tokens) :, None])[:, 0].numpy()


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.tokens.tolist() for completion in completions]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("qwen2")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logprobs_equal_those_of_a_plain_forward_pass(name: str) -> None:
    model = build(name)
    asked = prompts(1, 19, 4, 33)
    completions = LocalEngine(model, TOKENIZER, slots=3).generate(asked, 2, Sampling(max_new_tokens=24))
    assert [(c.prompt, c.sample) for c in completions] == [(p, s) for p in range(4) for s in range(2)]
    for completion in completions:
        expected = plain_logprobs(model, asked[completion.prompt], completion)
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
        np.testing.assert_array_equal(completion.logprobs, completion.sampling_logprobs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_answers_equal_those_of_transformers_generate(name: str) -> None:
    model = build(name)
    asked = prompts(2, 30, 11)
    completions = LocalEngine(model, TOKENIZER).generate(asked, 1, Sampling(max_new_tokens=20, temperature=0))
    for prompt, completion in zip(asked, completions, strict=True):
        tokens = torch.from_numpy(prompt.tokens.astype(np.int64))[None]
        expected = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=20)
        assert completion.tokens.tolist() == expected[0, len(prompt.tokens) :].tolist()


def test_eager_attention_draws_the_same_answers_as_sdpa(model: PreTrainedModel) -> None:
    eager = build("qwen2")
    eager.set_attn_implementation("eager")
    asked = prompts(3, 15)
    sampling = Sampling(max_new_tokens=20)
    assert tokens_of(LocalEngine(eager, TOKENIZER).generate(asked, 2, sampling)) == tokens_of(
        LocalEngine(model, TOKENIZER).generate(asked, 2, sampling)
    )


@pytest.mark.parametrize("options", [{"slots": 1}, {"slots": 3}, {"slots": 5, "prefill_tokens": 1}])
def test_answers_do_not_depend_on_the_number_of_slots(model: PreTrainedModel, options: dict[str, int]) -> None:
    asked = prompts(7, 2, 25, 12)
    sampling = Sampling(max_new_tokens=40, stop_tokens=tuple(range(8)), seed=5)  # lengths vary widely
    expected = LocalEngine(model, TOKENIZER).generate(asked, 3, sampling)
    assert len({len(completion.tokens) for completion in expected}) > 4
    assert tokens_of(LocalEngine(model, TOKENIZER, **options).generate(asked, 3, sampling)) == tokens_of(expected)


def test_answers_do_not_depend_on_their_neighbours_in_the_batch(model: PreTrainedModel) -> None:
    asked = prompts(7, 2, 25)
    sampling = Sampling(max_new_tokens=20, temperature=1.3, top_k=50, seed=5)
    engine = LocalEngine(model, TOKENIZER)
    many = engine.generate(asked, 4, sampling)
    alone = engine.generate(asked[:1], 2, sampling)
    assert tokens_of(alone) == tokens_of(many[:2])


def test_samples_of_one_prompt_and_answers_of_two_seeds_differ(model: PreTrainedModel) -> None:
    engine = LocalEngine(model, TOKENIZER)
    first = engine.generate(prompts(5), 6, Sampling(max_new_tokens=8, seed=0))
    second = engine.generate(prompts(5), 6, Sampling(max_new_tokens=8, seed=1))
    assert len({tuple(tokens) for tokens in tokens_of(first + second)}) == 12


def test_only_the_named_samples_of_a_prompt_are_drawn(model: PreTrainedModel) -> None:
    asked = prompts(5, 9)
    whole = LocalEngine(model, TOKENIZER).generate(asked, 4, Sampling(max_new_tokens=12))
    some = [replace(asked[1], key=1, samples=(0, 3)), replace(asked[0], key=0, samples=(2,))]
    found = LocalEngine(model, TOKENIZER).generate(some, 4, Sampling(max_new_tokens=12))
    assert [(one.prompt, one.sample) for one in found] == [(0, 0), (0, 3), (1, 2)]
    assert tokens_of(found) == tokens_of([whole[4], whole[7], whole[2]])


def test_each_prompt_is_read_once_for_all_its_samples(model: PreTrainedModel) -> None:
    read: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    LocalEngine(model, TOKENIZER, slots=2, prefill_tokens=40).generate(
        prompts(20, 20, 20), 8, Sampling(max_new_tokens=2)
    )
    handle.remove()
    assert [width for width in read if width > 1] == [19, 19, 22]  # two prompts, one prompt, and the comparison


def test_a_finished_call_leaves_no_memory_to_the_search_for_cycles(model: PreTrainedModel) -> None:
    gc.collect()
    gc.disable()
    try:
        LocalEngine(model, TOKENIZER, slots=2).generate(prompts(3, 20), 3, Sampling(max_new_tokens=4))
        assert not [found for found in gc.get_objects() if isinstance(found, SlotCache)]
    finally:
        gc.enable()


def test_finished_answers_make_room_for_waiting_ones(model: PreTrainedModel) -> None:
    rows: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    sampling = Sampling(max_new_tokens=40, stop_tokens=tuple(range(8)))
    completions = LocalEngine(model, TOKENIZER, slots=4).generate(prompts(5), 16, sampling)
    handle.remove()
    decoding = rows[2:-1]
    # Each pass draws a token for each of its rows, and the prefill has drawn the first of every answer.
    assert sum(decoding) == sum(len(completion.tokens) - 1 for completion in completions)
    shrinking = decoding.index(next(count for count in decoding if count < 4))
    assert decoding[shrinking:] == sorted(decoding[shrinking:], reverse=True)


def test_an_answer_ends_with_the_end_of_turn_which_its_text_leaves_out(model: PreTrainedModel) -> None:
    sampling = Sampling(max_new_tokens=60, stop_tokens=(65, 66), temperature=1.5)
    completions = LocalEngine(model, TOKENIZER).generate(prompts(6, 9), 20, sampling)
    reasons = {completion.finish_reason for completion in completions}
    assert reasons == {"stop", "length"}
    for completion in completions:
        ends = [token in (IM_END, 65, 66) for token in completion.tokens]
        assert not any(ends[:-1])
        assert (completion.finish_reason == "stop") == ends[-1]
        assert len(completion.tokens) <= 60
        assert (completion.finish_reason == "length") == (len(completion.tokens) == 60 and not ends[-1])
        kept = completion.tokens[:-1] if ends[-1] else completion.tokens
        assert completion.text == TOKENIZER.decode(kept, clean_up_tokenization_spaces=False)


def test_a_stop_string_ends_an_answer_where_its_own_text_first_holds_it(model: PreTrainedModel) -> None:
    asked = prompts(6, 9)
    free = LocalEngine(model, TOKENIZER).generate(asked, 10, Sampling(max_new_tokens=60))
    # Strings that do occur: two characters of single bytes from the middle of a few free answers, across tokens.
    texts = [completion.text for completion in free]
    stops = tuple({text[20:22] for text in texts if text[20:22].isascii() and len(text) > 22})
    assert stops
    stopped = LocalEngine(model, TOKENIZER).generate(asked, 10, Sampling(max_new_tokens=60, stop=stops))
    found = 0
    for before, after in zip(free, stopped, strict=True):
        assert before.tokens[: len(after.tokens)].tolist() == after.tokens.tolist()
        hit = any(stop in after.text for stop in stops)
        found += hit
        assert hit == any(stop in before.text for stop in stops)
        assert not any(stop in TOKENIZER.decode(after.tokens[:-1]) for stop in stops)
        assert after.finish_reason == ("stop" if hit else before.finish_reason)
    assert found


def test_a_stop_string_may_name_a_special_token_and_one_in_the_prompt_does_not_count(model: PreTrainedModel) -> None:
    prompt = Prompt(np.array(TOKENIZER.encode("ab<|im_start|>ab"), dtype=np.int32))
    sampling = Sampling(max_new_tokens=80, temperature=2.0, stop=("<|im_start|>",))
    completions = LocalEngine(model, TOKENIZER).generate([prompt], 20, sampling)
    stopped = [completion for completion in completions if completion.text.endswith("<|im_start|>")]
    assert stopped
    assert all(completion.finish_reason == "stop" for completion in stopped)
    assert any(len(completion.tokens) > 1 for completion in completions)


def test_a_forced_prefix_is_continued_and_not_repeated(model: PreTrainedModel) -> None:
    asked, prefix = prompts(8)[0], np.array([10, 20, 30], dtype=np.int32)
    forced = Prompt(np.concatenate([asked.tokens, prefix]))
    completion = LocalEngine(model, TOKENIZER).generate([forced], 1, Sampling(max_new_tokens=5))[0]
    assert len(completion.tokens) == 5
    np.testing.assert_allclose(completion.logprobs, plain_logprobs(model, forced, completion), atol=1e-4)


def test_an_answer_ends_where_the_context_does(model: PreTrainedModel) -> None:
    completions = LocalEngine(model, TOKENIZER).generate(
        prompts(CONTEXT - 3, 4), 1, Sampling(max_new_tokens=6, temperature=0)
    )
    assert [len(completion.tokens) for completion in completions] == [3, 6]
    assert completions[0].finish_reason == "length"


@pytest.mark.parametrize("length", [0, CONTEXT, CONTEXT + 5])
def test_a_prompt_that_leaves_no_room_is_refused_by_its_length(model: PreTrainedModel, length: int) -> None:
    with pytest.raises(UserError, match=f"prompt 1 has {length or 'no'}"):
        LocalEngine(model, TOKENIZER).generate(prompts(3, length), 1, Sampling())


def test_no_prompts_give_no_completions(model: PreTrainedModel) -> None:
    assert LocalEngine(model, TOKENIZER).generate([], 4, Sampling()) == []


def test_progress_counts_every_drawn_token(model: PreTrainedModel) -> None:
    drawn: list[int] = []
    engine = LocalEngine(model, TOKENIZER, slots=3, progress=drawn.append)
    completions = engine.generate(prompts(5, 6), 3, Sampling(max_new_tokens=12, stop_tokens=tuple(range(20))))
    assert sum(drawn) == sum(len(completion.tokens) for completion in completions)


def test_the_model_is_seen_with_its_weights_of_the_moment_and_left_as_it_was() -> None:
    model = build("llama")
    model.train()
    frozen = model.get_submodule("model.layers.0")
    frozen.eval()
    engine = LocalEngine(model, TOKENIZER)
    sampling = Sampling(max_new_tokens=5, temperature=0)
    before = engine.generate(prompts(6), 1, sampling)
    assert model.training
    assert not frozen.training
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1)
    after = engine.generate(prompts(6), 1, sampling)
    assert tokens_of(before) != tokens_of(after)
    model(input_ids=torch.arange(4)[None], labels=torch.arange(4)[None]).loss.backward()  # still trainable


def test_adapters_are_drawn_with_and_can_be_switched_off() -> None:
    base = build("qwen3")
    plain = LocalEngine(base, TOKENIZER).generate(prompts(6), 2, Sampling(max_new_tokens=10))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    engine = LocalEngine(model, TOKENIZER)
    adapted = engine.generate(prompts(6), 2, Sampling(max_new_tokens=10))
    for completion in adapted:
        expected = plain_logprobs(model.eval(), prompts(6)[0], completion)
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
    assert tokens_of(adapted) != tokens_of(plain)
    with model.disable_adapter():
        assert tokens_of(engine.generate(prompts(6), 2, Sampling(max_new_tokens=10))) == tokens_of(plain)


def test_models_that_slots_cannot_hold_are_refused_by_name() -> None:
    sizes = {"vocab_size": 300, "hidden_size": 16, "eos_token_id": 257, "pad_token_id": 258}
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**sizes, num_hidden_layers=1, state_size=4))
    bloom = AutoModelForCausalLM.from_config(BloomConfig(**sizes, n_layer=1, n_head=2))  # positions from the 2-D mask
    tuned = get_peft_model(build("qwen2"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    for model, name in [(mamba, "mamba"), (bloom, "bloom"), (tuned, "virtual tokens")]:
        with pytest.raises(UserError, match=name):
            LocalEngine(model.eval(), TOKENIZER).generate(prompts(5, 3), 2, Sampling(max_new_tokens=4))


def test_an_engine_that_disagrees_with_the_model_is_found_out(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.generation import slots

    honest = slots.StepMasks.__call__
    monkeypatch.setattr(slots.StepMasks, "__call__", lambda self, at, columns: honest(self, at - 1, columns))
    with pytest.raises(UserError, match="log-probs are off"):
        LocalEngine(model, TOKENIZER).generate(prompts(9), 1, Sampling(max_new_tokens=5))


def test_bad_sampling_is_refused_before_anything_runs(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="temperature"):
        LocalEngine(model, TOKENIZER).generate(prompts(3), 1, replace(Sampling(), temperature=-1.0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_of_nan_weights_is_reported(temperature: float) -> None:
    model = build("qwen3")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        LocalEngine(model, TOKENIZER).generate(prompts(3), 1, Sampling(temperature=temperature))
