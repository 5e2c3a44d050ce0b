"""docs/one_loop.py, the loop to read, computes what the full program computes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.data.rendering import Rendering, render_batch
from posttrain.policy import load_tokenizer, model_path
from posttrain.recipe import check_recipe
from posttrain.run import run
from posttrain.tasks.chains import Chains
from posttrain.terminal import Terminal

DOCS = Path(__file__).parents[1] / "docs"
ROWS = 100


def one_loop():
    spec = importlib.util.spec_from_file_location("one_loop", DOCS / "one_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_teaching_loop_and_the_full_program_have_the_same_losses(tmp_path):
    recipe = check_recipe(
        {
            "name": "same",
            "out": str(tmp_path / "run"),
            "model": {"path": "tiny"},
            "data": {"train": {"task": {"name": "chains", "part": "train"}, "count": ROWS, "seed": 1}},
            "stages": {"sft": {"kind": "train", "epochs": 2, "batch_size": 32, "lr": 1e-3, "micro_batch_tokens": 512}},
        }
    )
    run(recipe, Terminal(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    full = [row["loss"] for row in rows if row["kind"] == "train"]

    model = AutoModelForCausalLM.from_pretrained(model_path("tiny"), dtype=torch.float32)
    samples = Chains(part="train").samples(ROWS, seed=1)
    rendered = render_batch(samples, load_tokenizer("tiny"), Rendering(model.config.max_position_embeddings))
    taught = one_loop().train(model, [item.sequence for item in rendered])

    assert len(full) == len(taught) == 7
    assert taught == pytest.approx(full, rel=1e-4)


def test_the_teaching_loop_stays_short():
    assert len((DOCS / "one_loop.py").read_text().splitlines()) < 150
