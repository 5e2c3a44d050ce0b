"""docs/one_loop_grpo.py, the loop to read, draws and computes what the full program does."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.policy import model_path
from posttrain.recipe import read_recipe
from posttrain.run import run
from posttrain.tasks.chains import Chains
from posttrain.terminal import Terminal

DOCS = Path(__file__).parents[1] / "docs"
STEPS, QUESTIONS = 2, 20


def one_loop():
    spec = importlib.util.spec_from_file_location("one_loop_grpo", DOCS / "one_loop_grpo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_teaching_loop_and_the_full_program_have_the_same_answers_and_updates(tmp_path):
    recipe = read_recipe("grpo", [f"train.steps={STEPS}", f"data.train.count={QUESTIONS}", f"out={tmp_path / 'run'}"])
    run(recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}}), Terminal(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    path = model_path("tiny")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    task = Chains(part="train")
    log = one_loop().train(model, AutoTokenizer.from_pretrained(path), task, task.samples(QUESTIONS, seed=1), STEPS)

    assert [reward for reward, _ in log] == pytest.approx([row["reward"] for row in rows])
    assert [norm for _, norm in log] == pytest.approx([row["grad_norm"] for row in rows], rel=1e-3)


def test_the_teaching_loop_of_rollouts_stays_short():
    assert len((DOCS / "one_loop_grpo.py").read_text().splitlines()) < 150
