"""One contender's reinforcement learning, in a process of its own: `python -m benchmarks.grpo_contender NAME LENGTHS`.

Its last line is a JSON object: of each measured step the seconds, the drawn tokens and the parts that the time went
to; peak memory; settings.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.contender import CLIP, Laps, token_budget, train_for
from benchmarks.floor import matrix_rate
from benchmarks.memory import PeakMemory
from benchmarks.workload import WORKLOADS, load_tokenizer, read_problems
from posttrain.advantages import build_advantage
from posttrain.data import Sample, user
from posttrain.generation import Completion, Sampling
from posttrain.generation.local import LocalEngine
from posttrain.policy import Policy
from posttrain.rewards import Attempt, Score, build_reward, reward
from posttrain.sources.answering import Answering
from posttrain.sources.rollout import Question, RolloutSettings
from posttrain.sources.rollouts import Rollouts

PROMPTS, SAMPLES, MEAN = 8, 8, 64
LONGEST = {"equal": MEAN, "varied": 256}
"""Most drawn tokens. `equal`: the end token is none that the model can draw; `varied`: V/64 tokens end an answer, so
that lengths are about geometric."""
WARMUP, STEPS = 1, 3
LEARNING_RATE = 1e-6
WORKLOAD = WORKLOADS["small"]


def score(text: str) -> float:
    """What an answer is worth: any cheap function of its text that tells answers apart."""
    return len(set(text)) / max(1, len(text))


@reward("variety")
def variety(attempt: Attempt) -> float:
    """The same reward for ours."""
    return score(attempt.text)


def prepare(device: str, lengths: str, length: int | None) -> tuple[Any, PreTrainedTokenizerFast, list[str]]:
    """The model, a tokenizer whose end of turn no model draws, and the questions (cut or filled to `length` tokens)."""
    problems = read_problems(None)
    words = load_tokenizer(problems)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words._tokenizer, pad_token="<|pad|>", eos_token="<|never|>")
    model = WORKLOAD.model(device)
    last = WORKLOAD.vocabulary
    ends = list(range(last - last // MEAN, last)) if lengths == "varied" else None
    model.generation_config.eos_token_id = ends
    count = PROMPTS * (WARMUP + STEPS)
    questions = [question for question, _ in problems[:count]]
    if length is not None:
        rest = tokenizer.encode(" ".join(question for question, _ in problems), add_special_tokens=False)
        questions = [tokenizer.decode(rest[row * length : (row + 1) * length]) for row in range(count)]
    return model, tokenizer, questions


def posttrain(model: Any, tokenizer: Any, questions: list[str], lengths: str, device: str) -> dict[str, Any]:
    """Our loop with its rollouts, with the settings that a recipe has by default."""
    policy = Policy(model, tokenizer)
    engine = LocalEngine(model, tokenizer)

    def generate(samples: Any, prompts: Any, n: int, sampling: Sampling, *rest: Any) -> list[Completion]:
        return engine.generate(prompts, n, sampling)

    settings = RolloutSettings(PROMPTS, SAMPLES, Sampling(max_new_tokens=LONGEST[lengths]))
    source = Rollouts(
        [
            Question(Sample((user(text),)), np.array(tokenizer.encode(text, add_special_tokens=False), np.int32))
            for text in questions
        ],
        settings,
        Answering(settings, generate, build_reward("variety"), lambda sample, text: Score(0.0)),
        advantage=build_advantage({"name": "group", "eps": 1e-4}),
        seed=0,
    )
    run = train_for(policy, source, "grpo", WARMUP + STEPS, LEARNING_RATE, device)
    rows = run.rows
    parts = sorted({name for row in rows for name in row if name.startswith("time/")})
    split = {name.removeprefix("time/"): [row.get(name, 0.0) for row in rows] for name in parts}
    settings = {"micro_batch_tokens": token_budget(policy), "slots": engine.slots}
    return {"steps": run.steps() | split, "memory": run.memory.report(), "settings": settings}


def trl(model: Any, tokenizer: Any, questions: list[str], lengths: str, device: str, rows: int = 64) -> dict[str, Any]:
    """TRL's GRPOTrainer on the same questions. `rows`: answers learned from at once."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    laps, drawing = Laps(device), [0.0]

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **options: Any) -> None:
            laps.mark()

        def on_step_end(self, *args: Any, **options: Any) -> None:
            laps.mark()
            drawing.append(0.0)

    options: dict[str, Any] = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": PROMPTS * SAMPLES // rows,
        "num_generations": SAMPLES,
        "max_completion_length": LONGEST[lengths],
        "shuffle_dataset": False,
        "loss_type": "grpo",
        "beta": 0.0,
        "optim": "adamw_torch_fused",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_steps": WARMUP + STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"output_dir": folder, "report_to": [], "disable_tqdm": True, "use_cpu": device == "cpu"}
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **columns: [score(text) for text in completions],
            args=GRPOConfig(**options, **quiet),
            train_dataset=Dataset.from_list([{"prompt": text} for text in questions]),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer._generate_single_turn = timed(trainer._generate_single_turn, drawing)
        memory = PeakMemory(device)
        trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    drawn = [PROMPTS * SAMPLES * row["completions/mean_length"] for row in logged]
    steps = laps.steps(drawn, drawn, [row["loss"] for row in logged]) | {"generate": drawing[:-1]}
    return {"steps": steps, "memory": memory.report(), "settings": options}


def timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """`work`, which adds what it takes to the last of `seconds`."""

    def run(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        found = work(*args, **options)
        seconds[-1] += time.perf_counter() - started
        return found

    return run


CONTENDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "posttrain": posttrain,
    "TRL": trl,
    "TRL, 8 at once": lambda *args: trl(*args, rows=8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*CONTENDERS, "floor"])
    parser.add_argument("lengths", choices=list(LONGEST))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--prompt-length", type=int, help="tokens of every question; default: as GSM8K's are")
    options = parser.parse_args()
    if options.name == "floor":
        print(json.dumps({"rate": matrix_rate(WORKLOAD, options.device, options.clock)}))
        return
    model, tokenizer, questions = prepare(options.device, options.lengths, options.prompt_length)
    found = CONTENDERS[options.name](model, tokenizer, questions, options.lengths, options.device)
    found["steps"] = {name: values[WARMUP:] for name, values in found["steps"].items()}
    print(json.dumps({**found, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
