"""What a plan finds before anything is computed."""

from pathlib import Path
from typing import Any

import architectures
import pytest
import running
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.errors import UserError
from posttrain.recipe import check_recipe
from posttrain.run import plan
from posttrain.stages import Plan
from posttrain.terminal import Terminal

CHAINS = {"task": "chains", "count": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llama` and `wider` share a tokenizer; `other_words` has another one; `mamba` keeps no keys and values."""
    folder = tmp_path_factory.mktemp("models")
    running.save_tiny(folder / "llama")
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 260}
    wider = AutoModelForCausalLM.from_config(LlamaConfig(**small, num_attention_heads=2, num_key_value_heads=2))
    for name in ("wider", "other_words"):
        wider.save_pretrained(folder / name)
    words = architectures.tokenizer()
    words.save_pretrained(folder / "wider")
    words.add_tokens(["<another>"])
    words.save_pretrained(folder / "other_words")
    return folder


def plans(models: Path, out: Path, **stages: dict[str, Any]) -> dict[str, Plan]:
    others = {name: str(models / name) for name in ("wider", "other_words")}
    content = {"name": "t", "out": str(out / "run"), "model": str(models / "llama"), "models": others}
    return plan(check_recipe({**content, "data": {"own": CHAINS}, "stages": stages}), Terminal(quiet=True))


def test_models_of_different_shapes_are_not_merged(models: Path, tmp_path: Path) -> None:
    plans(models, tmp_path, mean={"kind": "merge", "models": ["base", "base"]})
    with pytest.raises(UserError, match="'base' and 'wider' differ at parameter"):
        plans(models, tmp_path, mean={"kind": "merge", "models": ["base", "wider"]})


@pytest.mark.parametrize(
    "stage",
    [{"kind": "train", "objective": "sft_kl"}, {"kind": "evaluate", "max_new_tokens": 4}],
    ids=lambda s: s["kind"],
)
def test_a_reference_with_other_words_is_refused(models: Path, tmp_path: Path, stage: dict[str, Any]) -> None:
    plans(models, tmp_path, s={**stage, "data": "own", "reference": "wider"})
    with pytest.raises(UserError, match="reference 'other_words' has another vocabulary than 'base'"):
        plans(models, tmp_path, s={**stage, "data": "own", "reference": "other_words"})


def test_a_reference_that_nothing_asks_is_said(models: Path, tmp_path: Path) -> None:
    found = plans(models, tmp_path, s={"kind": "train", "data": "own", "reference": "wider"})
    assert any("asks no reference" in note for note in found["s"].notes)


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "evaluate", "max_new_tokens": 4},
        {"kind": "train", "watch": {"data": "own", "every": 1, "max_new_tokens": 4}},
    ],
    ids=lambda s: s["kind"],
)
def test_an_architecture_that_the_engine_does_not_know_is_refused(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any]
) -> None:
    monkeypatch.setattr(LlamaConfig, "attention_chunk_size", 8, raising=False)
    with pytest.raises(UserError, match="the in-process engine cannot run 'llama' models"):
        plans(models, tmp_path, s={**stage, "data": "own"})


def test_an_architecture_that_the_engine_does_not_know_may_be_trained(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaConfig, "attention_chunk_size", 8, raising=False)
    content = {"name": "t", "out": str(tmp_path / "run"), "model": str(models / "llama"), "data": {"own": CHAINS}}
    running.run_quietly(check_recipe({**content, "stages": {"s": {"kind": "train", "data": "own", "steps": 1}}}))
    assert "reload_difference" in running.manifest(tmp_path / "run")["stages"]["s"]["summary"]
