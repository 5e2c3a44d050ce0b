import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build, tokenizer
from steps import random_step
from transformers import AutoModel, CohereConfig, GraniteConfig

from posttrain.data.batch import collate
from posttrain.errors import UserError
from posttrain.policy import ModelOptions, Policy, load_model, load_tokenizer, model_path
from posttrain.policy.loading import context_length, find_head


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    Policy(build("llama"), tokenizer()).save(folder)
    return folder


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "broken"))


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def same_weights(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_folder_and_a_hub_name_are_taken_as_they_are(saved: Path, tmp_path: Path) -> None:
    assert model_path(str(saved)) == str(saved)
    assert model_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize("name", ["qwen", "./missing/model", "~/missing-model", "/missing/model", "a/b/c", "a/", ""])
def test_a_name_that_is_neither_a_folder_nor_a_hub_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"give a model folder, a hub name|has no config.json"):
        model_path(name)


def test_a_missing_folder_inside_an_existing_one_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(UserError, match="model 'runs/typo': no such folder"):
        model_path("runs/typo")


def test_a_folder_without_a_configuration_is_refused(broken: Path) -> None:
    (broken / "config.json").unlink()
    with pytest.raises(UserError, match=r"broken' has no config.json; it needs what save_pretrained writes"):
        load_model(str(broken), ModelOptions())


def test_a_folder_without_weights_is_refused_unless_they_are_to_be_random(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"broken' has no weights \(\*.safetensors"):
        load_model(str(broken), ModelOptions())
    Policy.load(str(broken), ModelOptions(weights="random"))


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None], ids=["empty", "text", "cut off"])
def test_a_damaged_file_of_weights_is_refused(broken: Path, content: bytes | None) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000] if content is None else content)
    with pytest.raises(UserError, match="broken' cannot be loaded"):
        load_model(str(broken), ModelOptions())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 3}, r"9 weights are missing or .* such as 'model.layers.2"),
        ({"intermediate_size": 48}, r"6 weights are missing or not of the size that config.json says"),
        ({"model_type": "nonsense"}, "nonsense"),
        ({"model_type": "t5"}, "cannot be loaded: Unrecognized configuration class"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    broken: Path, config: dict[str, Any], message: str
) -> None:
    change_config(broken, **config)
    with pytest.raises(UserError, match=message):
        load_model(str(broken), ModelOptions())


def test_a_model_saved_without_its_head_is_refused(saved: Path, tmp_path: Path) -> None:
    body = AutoModel.from_pretrained(saved)
    body.save_pretrained(tmp_path / "body")
    with pytest.raises(UserError, match=r"1 weights are missing .* 'lm_head.weight'"):
        load_model(str(tmp_path / "body"), ModelOptions())
    with pytest.raises(UserError, match="LlamaModel has no language-model head"):
        find_head(body)


def test_a_broken_configuration_is_named(broken: Path) -> None:
    (broken / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config.json' is not a valid JSON file"):
        load_model(str(broken), ModelOptions())


def test_an_unknown_attention_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match="attn_implementation"):
        load_model(str(saved), ModelOptions(attention="nonsense"))


def test_a_folder_without_a_tokenizer_is_refused(broken: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    with pytest.raises(UserError, match="broken': its tokenizer cannot be loaded"):
        load_tokenizer(str(broken))


def test_an_adapter_folder_is_loaded_on_its_base_and_can_be_trained_on(saved: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(load_model(str(saved), ModelOptions()), config)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"), ModelOptions())
    assert same_weights(model, loaded)
    trained = [{n for n, p in one.named_parameters() if p.requires_grad} for one in (model, loaded)]
    assert trained[0] == trained[1] != set()


def test_an_adapter_without_its_base_is_refused(saved: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(load_model(str(saved), ModelOptions()), peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(UserError, match=r"adapter '.*' cannot be loaded: model '/gone/base': no such folder"):
        load_model(str(tmp_path / "adapter"), ModelOptions())


def test_a_missing_pad_token_is_filled_in(saved: Path, tmp_path: Path) -> None:
    bare = tokenizer()
    bare.pad_token = None
    bare.save_pretrained(shutil.copytree(saved, tmp_path / "bare"))
    assert load_tokenizer(str(tmp_path / "bare")).pad_token_id == bare.eos_token_id
    bare.add_special_tokens({"unk_token": "<|endoftext|>"})
    bare.save_pretrained(tmp_path / "bare")
    assert load_tokenizer(str(tmp_path / "bare")).pad_token_id == bare.convert_tokens_to_ids("<|endoftext|>")


def test_random_weights_are_those_of_the_seed_alone(saved: Path) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = load_model(str(saved), ModelOptions(weights="random", seed=3))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again = load_model(str(saved), ModelOptions(weights="random", seed=3))
    other = load_model(str(saved), ModelOptions(weights="random", seed=4))
    assert same_weights(first, again)
    assert not same_weights(first, other)
    assert not same_weights(first, load_model(str(saved), ModelOptions()))


@pytest.mark.parametrize(
    ("dtype", "held"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("mixed", torch.float32)]
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_weights_are_held_as_the_option_says(saved: Path, dtype: Any, held: torch.dtype, weights: Any) -> None:
    policy = Policy.load(str(saved), ModelOptions(dtype=dtype, weights=weights))
    assert {parameter.dtype for parameter in policy.model.parameters()} == {held}
    assert policy.autocast == (dtype == "mixed")
    assert not policy.model.training
    scores = policy.scores(collate(random_step(0, [5, 3]))).logprobs
    assert scores.dtype == torch.float32


def test_gradient_checkpointing_is_switched_on_by_its_option(saved: Path) -> None:
    policy = Policy.load(str(saved), ModelOptions(gradient_checkpointing=True))
    layer = policy.model.model.layers[0]
    calls = []
    layer.input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    policy.model.train()
    policy.scores(collate(random_step(0, [5]))).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("attention", "layout"), [("sdpa", "padded"), ("flash_attention_2", "packed"), ("flex_attention", "packed")]
)
def test_rows_are_packed_for_attention_that_makes_use_of_it(
    saved: Path, attention: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.policy.policy.load_model", lambda name, options, device: build("llama"))
    assert Policy.load(str(saved), ModelOptions(attention=attention)).layout == layout


def test_the_context_is_that_of_the_configuration() -> None:
    for name in ("llama", "gpt2", "gemma3"):
        assert context_length(build(name)) == 512


SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


@pytest.mark.parametrize(
    ("config", "scale"),
    [(CohereConfig(**SIZES, logit_scale=0.25), 0.25), (GraniteConfig(**SIZES, logits_scaling=4.0), 0.25)],
    ids=["cohere", "granite"],
)
def test_architectures_that_scale_their_logits_are_known(config: Any, scale: float) -> None:
    from transformers import AutoModelForCausalLM

    head = find_head(AutoModelForCausalLM.from_config(config).eval())
    assert head.scale == scale
    assert not head.is_plain


def test_the_softcap_is_read_from_the_configuration() -> None:
    assert find_head(build("gemma3_softcap")).softcap == 3.0
    assert find_head(build("gemma3")).softcap is None


def test_an_architecture_that_transforms_its_logits_in_an_unknown_way_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("llama")
    forward = type(model).forward

    def bent(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits.sin()
        return output

    monkeypatch.setattr(type(model), "forward", bent)
    with pytest.raises(UserError, match="LlamaForCausalLM transforms its logits in a way that posttrain does not know"):
        Policy(model, tokenizer())


def test_looking_for_the_head_leaves_every_module_in_its_mode() -> None:
    model = build("gpt2").train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    find_head(model)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


def test_the_head_of_a_wrapped_model_is_that_of_its_base() -> None:
    peft = pytest.importorskip("peft")
    model = build("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    assert find_head(wrapped).projection is model.lm_head


def test_soft_prompts_are_refused_rather_than_ignored() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UserError, match="is refused"):
        find_head(peft.get_peft_model(build("llama"), config))
