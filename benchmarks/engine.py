"""Generated tokens per second: the in-process engine beside transformers' `generate`, in turns, on the same work.

    python benchmarks/engine.py --repetitions 3 --output benchmarks/results/engine.json

A random Qwen2-shaped model (6M parameters and 4,096 tokens of vocabulary on a CPU, 0.5B-shaped in bfloat16 on a GPU)
draws 128 answers, 8 to each of 16 prompts, at temperature 1. `varied`: an answer ends with one of V/64 end tokens, so
that lengths are about geometric with mean 64, at most 256. `equal`: every answer and every prompt has 64 tokens.
Transformers runs as many rows at once as the engine has slots, and all of them; the ratio is to the faster.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from posttrain.generation import Prompt, Sampling
from posttrain.generation.local import LocalEngine

PROMPTS, SAMPLES, MEAN, LONGEST = 16, 8, 64, 256
SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "dtype": torch.float32,
    },
    "cuda": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "dtype": torch.bfloat16,
    },
}


def build(device: str) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = Qwen2Config(**SHAPES[device], **special, tie_word_embeddings=True, max_position_embeddings=1024)
    return Qwen2ForCausalLM(config).to(device=device, dtype=config.dtype).eval()


def without_text(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one word for each token and no end of turn: only `decode` is called."""
    words = {f"w{token}": token for token in range(vocabulary)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))


def make_prompts(vocabulary: int, varied: bool) -> list[Prompt]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(MEAN // 2, 3 * MEAN // 2, PROMPTS) if varied else np.full(PROMPTS, MEAN)
    return [Prompt(generator.integers(vocabulary // MEAN, vocabulary, length).astype(np.int32)) for length in lengths]


def ours(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, varied: bool, slots: int) -> list[int]:
    """Lengths of the drawn answers."""
    ends = tuple(range(model.config.vocab_size // MEAN)) if varied else ()
    sampling = Sampling(max_new_tokens=LONGEST if varied else MEAN, stop_tokens=ends)
    prompts = make_prompts(model.config.vocab_size, varied)
    completions = LocalEngine(model, tokenizer, slots=slots).generate(prompts, SAMPLES, sampling)
    return [len(completion.tokens) for completion in completions]


def theirs(model: Qwen2ForCausalLM, varied: bool, rows: int) -> list[int]:
    """Lengths of the answers of `model.generate`, up to `rows` at once, each cut behind its end token."""
    prompts = make_prompts(model.config.vocab_size, varied)
    ends = list(range(model.config.vocab_size // MEAN)) if varied else None
    lengths: list[int] = []
    for start in range(0, PROMPTS, rows // SAMPLES):
        batch = [prompt.tokens for prompt in prompts[start : start + rows // SAMPLES]]
        width = max(map(len, batch))
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(batch):
            tokens[row, width - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, width - len(prompt) :] = 1
        drawn = model.generate(
            tokens.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            top_k=0,
            num_return_sequences=SAMPLES,
            max_new_tokens=LONGEST if varied else MEAN,
            eos_token_id=ends,
            pad_token_id=0,
        )[:, width:]
        for answer in drawn.cpu().numpy():
            ended = np.flatnonzero(answer < len(ends)) if ends else []
            lengths.append(int(ended[0]) + 1 if len(ended) else len(answer))
    return lengths


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product: the best of a few."""
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        product = left @ right
        product[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def measure(contenders: Mapping[str, Callable[[], list[int]]], repetitions: int) -> dict[str, Any]:
    """Tokens per second of each, taken in turns after one round to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    lengths: dict[str, list[int]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            lengths[name] = contender()
            if repetition:
                rates[name].append(sum(lengths[name]) / (time.perf_counter() - started))
    return {
        name: {
            "tokens_per_second": round(statistics.median(rates[name]), 1),
            "spread": [round(min(rates[name]), 1), round(max(rates[name]), 1)],
            "mean_length": round(statistics.mean(lengths[name]), 1),
            "longest": max(lengths[name]),
        }
        for name in contenders
    }


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SHAPES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(options.device)
    tokenizer = without_text(model.config.vocab_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    floor = matrix_rate(options.device, model.dtype) / (2 * parameters)
    report: dict[str, Any] = {
        "machine": machine(options.device),
        "parameters": parameters,
        "slots": options.slots,
        "repetitions": options.repetitions,
        "floor_tokens_per_second": round(floor, 1),
    }
    for kind, varied in (("varied", True), ("equal", False)):
        contenders = {
            "posttrain": partial(ours, model, tokenizer, varied, options.slots),
            "transformers": partial(theirs, model, varied, options.slots),
            "transformers_all_rows": partial(theirs, model, varied, PROMPTS * SAMPLES),
        }
        found = measure(contenders, options.repetitions)
        mine = found["posttrain"]["tokens_per_second"]
        best = max(found[name]["tokens_per_second"] for name in found if name != "posttrain")
        report[kind] = found | {"ratio": round(mine / best, 2), "share_of_floor": round(mine / floor, 3)}
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
