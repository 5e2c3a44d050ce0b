"""One contender's training, in a process of its own: `python -m benchmarks.contender NAME WORKLOAD ...`.

Its last line is a JSON object: seconds, trained and input tokens and loss of each measured step, peak memory, settings.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from benchmarks.floor import matrix_rate
from benchmarks.memory import PeakMemory
from benchmarks.workload import WORKLOADS, Workload, load_tokenizer, make_sequences, read_problems
from posttrain.data import Sequence
from posttrain.data.batch import collate, micro_batches
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.policy.states import states_at_targets
from posttrain.sources import Demonstrations, Source
from posttrain.training.journal import Journal
from posttrain.training.loop import Loop, LoopSettings, train
from posttrain.training.optimisers import build_optimiser
from posttrain.training.ranks import Ranks
from posttrain.training.step import MICRO_BATCH_TOKENS

LEARNING_RATE = 1e-4
CLIP = 1.0
DEFAULTS = dict(MICRO_BATCH_TOKENS)
"""What a user gets who writes no more than he must."""


class Laps:
    """What each step took, on the wall clock and of the processors' time."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        """A step begins here, and the one before has ended."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self._marks.append((time.perf_counter(), time.process_time()))

    def steps(self, trained: list[float], read: list[float], losses: list[float]) -> dict[str, list[float]]:
        """One value a step: seconds, trained tokens, input tokens, loss."""
        wall, processors = np.diff(np.array(self._marks), axis=0).T.tolist()
        return {"wall": wall, "cpu": processors, "trained": trained, "input": read, "losses": losses}


def posttrain(
    workload: Workload, sequences: list[Sequence], tokenizer: Any, device: str, compiled: bool = False
) -> dict[str, Any]:
    """Our loop, with the settings that a recipe has by default."""
    model = workload.model(device)
    policy = Policy(model, tokenizer)
    if compiled:
        model.base_model.compile(dynamic=True)
    source = Demonstrations(sequences, workload.batch, 0, shuffle=False)
    run = train_for(policy, source, "nll", workload.warmup + workload.steps, LEARNING_RATE, device)
    settings = {"micro_batch_tokens": token_budget(policy), "layout": policy.layout, "compile": compiled}
    return {"steps": run.steps(), "memory": run.memory.report(), "settings": settings}


@dataclass(frozen=True)
class Trained:
    """What a run of our loop has left: its clock, the rows of its log, and its memory."""

    laps: Laps
    rows: list[dict[str, float]]
    memory: PeakMemory

    def steps(self) -> dict[str, list[float]]:
        """See `Laps.steps`."""
        return self.laps.steps(*([row[name] for row in self.rows] for name in ("tokens", "input_tokens", "loss")))


def train_for(policy: Policy, source: Source, objective: str, steps: int, rate: float, device: str) -> Trained:
    """So many steps of our loop at one learning rate, with the settings that a recipe has by default."""
    laps, rows = Laps(device), list[dict[str, float]]()

    def show(step: int, row: dict[str, float]) -> None:
        laps.mark()
        rows.append(row)

    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(
            policy=policy,
            source=source,
            objective=build_objective(objective),
            optimiser=build_optimiser(policy.trainable_parameters(), lr=rate),
            learning_rate=lambda step: rate,
            settings=LoopSettings(
                stage="benchmark",
                steps=steps,
                steps_per_epoch=steps,
                token_budget=token_budget(policy),
                seed=0,
                gradient_clip=CLIP,
            ),
            journal=Journal(Path(folder)),
            ranks=Ranks(),
            show=show,
        )
        memory = PeakMemory(device)
        laps.mark()
        train(loop)
    return Trained(laps, rows, memory)


def token_budget(policy: Policy) -> int:
    """Tokens of a micro-batch by default."""
    return DEFAULTS[policy.device.type]


def trl(
    workload: Workload, sequences: list[Sequence], tokenizer: Any, device: str, rows: int = 0, packed: bool = False
) -> dict[str, Any]:
    """TRL's SFTTrainer on the same tokens. `rows`: sequences (packed: rows of 1,024 tokens) computed at once."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    laps = Laps(device)

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **options: Any) -> None:
            laps.mark()

        on_step_end = on_train_begin

    per_step = workload.batch
    if packed:
        per_row = 1024 * len(sequences) / sum(len(sequence) for sequence in sequences)
        per_step = max(1, round(workload.batch / per_row))
    at_once = min(rows or per_step, per_step)
    model = workload.model(device)
    columns = [
        {"input_ids": s.tokens.tolist(), "labels": np.where(s.target, s.tokens, -100).tolist()} for s in sequences
    ]
    options: dict[str, Any] = {
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": per_step // at_once,
        "packing": packed,
        "max_length": 1024,
        "optim": "adamw_torch_fused",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"output_dir": folder, "report_to": [], "disable_tqdm": True, "use_cpu": device == "cpu"}
        data = Dataset.from_list(columns)
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**options, **quiet),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        memory = PeakMemory(device)
        trainer.train()
    labels = [np.array(row) != -100 for row in trainer.train_dataset["labels"]]
    groups = [labels[start : start + per_step] for start in range(0, len(labels), per_step)]
    steps = laps.steps(
        trained=[float(sum(row.sum() for row in group)) for group in groups],
        read=[float(sum(len(row) for row in group)) for group in groups],
        losses=[row["loss"] for row in trainer.state.log_history if "loss" in row],
    )
    used = {name: getattr(trainer.args, name) for name in ("loss_type", "bf16", "fp16", "tf32")}
    return {"steps": steps, "memory": memory.report(), "settings": {**options, **used, "rows_in_step": per_step}}


def plain(workload: Workload, sequences: list[Sequence], tokenizer: Any, device: str) -> dict[str, Any]:
    """Our micro-batches with the logits of all their target tokens at once, under autograd's own cross-entropy."""
    model = workload.model(device)
    policy = Policy(model, tokenizer)
    optimiser = build_optimiser(policy.trainable_parameters(), lr=LEARNING_RATE)
    memory = PeakMemory(device)
    model.train()
    laps, losses, largest = Laps(device), [], 0
    groups = [sequences[start : start + workload.batch] for start in range(0, len(sequences), workload.batch)]
    laps.mark()
    for step in groups:
        loss, trained = 0.0, sum(sequence.targets for sequence in step)
        for part in micro_batches(step, token_budget(policy)):
            batch = collate([step[row] for row in part], pad_id=tokenizer.pad_token_id).to(policy.device)
            logits = policy.head.projection(states_at_targets(model, batch)).float()
            value = F.cross_entropy(logits, batch.tokens, reduction="sum") / trained
            value.backward()
            loss += value.item()
            largest = max(largest, len(batch.tokens))
            del logits, value
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss)
        laps.mark()
    trained_tokens = [float(sum(sequence.targets for sequence in step)) for step in groups]
    steps = laps.steps(trained_tokens, [float(sum(map(len, step))) for step in groups], losses)
    settings = {"micro_batch_tokens": token_budget(policy), "largest_logits_mib": largest * workload.vocabulary / 2**18}
    return {"steps": steps, "memory": memory.report(), "settings": settings}


CONTENDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "posttrain": posttrain,
    "posttrain, compiled": lambda *args: posttrain(*args, compiled=True),
    "plain logits": plain,
    "TRL": trl,
    "TRL, 8 at once": lambda *args: trl(*args, rows=8),
    "TRL, packed": lambda *args: trl(*args, rows=1, packed=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*CONTENDERS, "floor"])
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--micro-batch-tokens", type=int, help="ours; default: the recipe's")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    if options.name == "floor":
        print(json.dumps({"rate": matrix_rate(workload, options.device, options.clock)}))
        return
    if options.micro_batch_tokens:
        DEFAULTS[options.device] = options.micro_batch_tokens
    problems = read_problems(options.data)
    tokenizer: PreTrainedTokenizerFast = load_tokenizer(problems)
    sequences = make_sequences(workload, problems, tokenizer)
    del problems
    found = CONTENDERS[options.name](workload, sequences, tokenizer, options.device)
    found["steps"] = {name: values[workload.warmup :] for name, values in found["steps"].items()}
    print(json.dumps({**found, "threads": torch.get_num_threads(), "parameters": parameters(workload)}))


def parameters(workload: Workload) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in workload.model("meta").parameters())


if __name__ == "__main__":
    main()
