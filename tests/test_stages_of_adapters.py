"""What a stage saves is what it trained, also where its base is in no folder; and it ends its turns."""

import json
from pathlib import Path

import pytest
import torch
from architectures import IM_END, build, tokenizer
from running import run_quietly, save_tiny, small_recipe
from transformers import AutoModelForCausalLM

from posttrain.policy import Policy
from posttrain.recipe import check_recipe
from posttrain.run import run
from posttrain.terminal import Terminal

LORA = {"name": "lora", "rank": 4}


@pytest.fixture
def recipe(tmp_path):
    model = build("llama")
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path / "model")
    text = tokenizer()
    text.eos_token = "<|endoftext|>"
    text.save_pretrained(tmp_path / "model")
    rows = [{"question": f"{n} + 1 =", "answer": f"#### {n + 1}"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(stages, **model_fields):
        return check_recipe(
            {
                "name": "adapters",
                "out": str(tmp_path / "run"),
                "model": {"path": str(tmp_path / "model"), **model_fields},
                "data": {"train": str(tmp_path / "rows.jsonl")},
                "stages": stages,
            }
        )

    return make


def train(**fields):
    return {"kind": "train", "batch_size": 4, "lr": 1e-2, "checkpoint_every": None, **fields}


def test_an_adapter_on_an_adapter_is_saved_whole(recipe, tmp_path):
    outcome = run(recipe({"a": train(adapter=LORA), "b": train(adapter=LORA, init_from="a")}), Terminal(quiet=True))
    assert (tmp_path / "run" / "models" / "a" / "adapter_config.json").is_file()
    assert (tmp_path / "run" / "models" / "b" / "model.safetensors").is_file()
    assert outcome.stages["b"]["reload_difference"] < 1e-3


def test_an_adapter_on_random_weights_is_saved_whole(recipe, tmp_path):
    outcome = run(recipe({"a": train(adapter=LORA)}, weights="random"), Terminal(quiet=True))
    assert (tmp_path / "run" / "models" / "a" / "model.safetensors").is_file()
    assert outcome.stages["a"]["reload_difference"] < 1e-3


def test_a_base_model_whose_own_end_token_is_another_ends_its_turns_as_trained(recipe, tmp_path):
    stages = {
        "sft": train(epochs=30, lr=3e-3),
        "after": {"kind": "evaluate", "model": "sft", "data": "train", "max_new_tokens": 24},
    }
    outcome = run(recipe(stages), Terminal(quiet=True))
    assert outcome.stages["after"]["truncated"] < 0.5
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "models" / "sft")
    assert IM_END in saved.generation_config.eos_token_id


def test_mixed_precision_is_the_same_for_scores_and_answers(tmp_path):
    policy = Policy(build("qwen3"), tokenizer(), autocast=True)
    with policy.computing():
        assert policy.model(input_ids=torch.arange(5)[None]).logits.dtype == torch.bfloat16


def test_an_adapter_of_a_relative_base_opens_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    train = {"kind": "train", "steps": 1, "adapter": "lora"}
    run_quietly(small_recipe(Path("model"), Path("run"), {"a": train}))
    monkeypatch.chdir("/")
    assert Policy.load(str(tmp_path / "run" / "models" / "a")).context_length == 512
