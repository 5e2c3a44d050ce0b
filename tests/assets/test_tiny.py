"""The small base model is what its card says."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.rendering import Rendering, render
from posttrain.policy import model_path
from posttrain.tasks import tasks

FOLDER = Path(model_path("tiny"))
GENERATED = ["chains", "countdown", "facts", "logic", "multiplication", "word_problems"]
"""The tasks that it was made of; others came later."""


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_it_is_small():
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    parameters = AutoModelForCausalLM.from_pretrained(FOLDER).num_parameters()
    assert size <= 10 * 10**6
    assert 2 * 10**6 <= parameters <= 4 * 10**6


def test_every_digit_is_one_token(tokenizer):
    assert tokenizer.tokenize("2026*13=") == ["2", "0", "2", "6", "*", "1", "3", "="]


@pytest.mark.parametrize("token", ["<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "<image>", "<plan>"])
def test_tags_are_one_token_and_survive_decoding(tokenizer, token):
    ids = tokenizer.encode(token, add_special_tokens=False)
    assert len(ids) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == token


def test_any_text_can_be_written(tokenizer):
    text = "Zoë paid 3 € — ½ of it, “yes”\t\n漢字 🦆"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("name", GENERATED)
def test_every_style_of_every_task_is_rendered_with_its_answer_trained(tokenizer, name):
    task = tasks[name]()
    for style in task.styles:
        for sample in task.samples(5, seed=3, style=style):
            sequence = render(sample, tokenizer, Rendering(1024))
            trained = tokenizer.decode(sequence.tokens[sequence.target])
            assert trained == f"{sample.response_text}<|im_end|>"


def test_the_card_tells_what_it_scores():
    card = (FOLDER / "README.md").read_text()
    rows = dict(re.findall(r"\| (\w+) \| ([\d.]+) % ", card))
    scores = json.loads((FOLDER / "scores.json").read_text())
    assert set(rows) == set(GENERATED)
    for name, shown in rows.items():
        assert float(shown) == pytest.approx(100 * scores[name]["in"]["accuracy"], abs=0.06)
        assert scores[name]["harder"]["accuracy"] < scores[name]["in"]["accuracy"]
