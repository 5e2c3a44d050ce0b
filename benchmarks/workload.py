"""What is trained: the models' shapes and the tokens, the same for every contender."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from posttrain.data import Origin, Sequence
from posttrain.tasks.word_problems import WordProblems

ROOT = Path(__file__).parents[1]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
CACHE = ROOT / "runs" / "benchmarks"
TOKENS = 4096
"""Size of the byte-level BPE vocabulary that the questions and answers are cut with."""


@dataclass(frozen=True)
class Workload:
    """A Qwen2-shaped model with tied embeddings, and how many sequences a step has."""

    name: str
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    batch: int
    warmup: int
    steps: int
    dtype: str = "float32"

    def config(self) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )

    def model(self, device: str) -> Any:
        """The same random weights every time."""
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(self.config(), dtype=getattr(torch, self.dtype)).to(device)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("small", 4096, 256, 768, 6, 4, 2, batch=32, warmup=1, steps=6),
        Workload("large-vocabulary", 151_936, 128, 384, 2, 2, 1, batch=16, warmup=1, steps=2),
        Workload("gpu", 151_936, 896, 4864, 24, 14, 2, batch=64, warmup=4, steps=16, dtype="bfloat16"),
        Workload("tiny", 4096, 32, 64, 1, 2, 1, batch=4, warmup=1, steps=2),
    )
}


def read_problems(path: Path | None) -> list[tuple[str, str]]:
    """Questions and answers of a JSONL file; without one, generated word problems of about GSM8K's length."""
    path = path or (GSM8K if GSM8K.is_file() else None)
    if path is None:
        samples = WordProblems().samples(7473, 0, difficulty="harder", style="prose")
        return [(str(s.prompt[-1]["content"]), str(s.response[-1]["content"])) for s in samples]
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [(row["question"], row["answer"]) for row in rows]


def load_tokenizer(problems: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of the problems' own text, trained once."""
    name = hashlib.blake2b(repr((TOKENS, problems)).encode(), digest_size=8).hexdigest()
    path = CACHE / f"tokenizer-{name}.json"
    if not path.is_file():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=TOKENS,
            special_tokens=["<|pad|>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator((text for pair in problems for text in pair), trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(path))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<|pad|>", eos_token="<|end|>")


def make_sequences(
    workload: Workload, problems: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast
) -> list[Sequence]:
    """Enough for all steps, drawn at random once. Answers and their end token are trained, questions are not."""
    chosen = np.random.default_rng(0).permutation(len(problems))[: workload.batch * (workload.warmup + workload.steps)]
    spread = workload.vocabulary // TOKENS  # a larger vocabulary is used over its whole width
    sequences = []
    for index in chosen:
        question, answer = (tokenizer.encode(text, add_special_tokens=False) for text in problems[index])
        tokens = np.array([*question, *answer, tokenizer.eos_token_id], np.int32)
        target = np.arange(len(tokens)) >= len(question)
        origin = np.where(target, Origin.DEMONSTRATION, Origin.PROMPT).astype(np.uint8)
        sequences.append(Sequence(tokens * spread, target, origin, f"problem{index}"))
    return sequences
