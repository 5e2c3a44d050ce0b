"""What one optimiser step of each objective costs beside plain likelihood's, on the same tokens, in one process.

    python benchmarks/objectives.py --repetitions 5 --output benchmarks/results/objectives.json

Every round takes one step of everything, in turn; ratios are taken within a round and their median is shown. `needs`
is what a method's formula asks for beside a likelihood step (a forward pass of the reference, a second forward pass of
the model ...), each measured by itself in the same rounds: `cost / (1 + needs)` is the price of our own code.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.workload import WORKLOADS, load_tokenizer, make_sequences, read_problems
from posttrain.data import Sequence
from posttrain.manifest import machine
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.sources.transforms import build_transform
from posttrain.training.ranks import Ranks
from posttrain.training.step import MICRO_BATCH_TOKENS, Stopwatch, accumulate_gradients, begin, score_sequences

BOUND = 1.15
"""What a step may cost beside a likelihood step and what its formula needs."""


@dataclass(frozen=True)
class Contender:
    """An objective as a recipe says it, the transforms before it, and the passes that its formula needs."""

    objective: Any
    needs: tuple[str, ...] = ()
    transforms: tuple[Any, ...] = ()


REFERENCE, FORWARD, STEP = "reference forward", "forward", "likelihood step"
CONTENDERS = {
    "nll": Contender("nll"),
    "label-smoothing": Contender({"name": "nll", "label_smoothing": 0.1}),
    "dft": Contender("dft"),
    "asft": Contender("asft", (REFERENCE,)),
    "sft-kl": Contender("sft_kl", (REFERENCE,)),
    "otr": Contender("otr"),
    "otr-exact": Contender({"name": "otr", "estimator": "exact"}),
    "poft": Contender("poft"),
    "focal": Contender("focal"),
    "gem": Contender("gem"),
    "iw-sft": Contender("iw_sft", (REFERENCE,)),
    "chord-phi": Contender("chord_phi"),
    "unlikelihood": Contender("unlikelihood"),
    "neftune": Contender({"name": "nll", "embedding_noise": 5.0}),
    "distill": Contender("distillation", (REFERENCE,)),
    "dpo": Contender("dpo", (REFERENCE,)),
    "ipo": Contender("ipo", (REFERENCE,)),
    "simpo": Contender("simpo"),
    "orpo": Contender([{"name": "nll", "where": "chosen"}, "orpo"]),
    "cpo": Contender([{"name": "nll", "where": "chosen"}, "cpo"]),
    "kto": Contender("kto", (REFERENCE, REFERENCE, FORWARD)),
    "ift": Contender("ift", (FORWARD,)),
    "masked-thought": Contender("nll", transforms=({"name": "corrupt", "mask_token": "<|pad|>"},)),
    "fslr": Contender("nll", transforms=("open_ended",)),
    "tl-training": Contender({"name": "nll", "weight_column": "weight", "reduction": "sequences"}),
    "glow": Contender("glow"),
    "lfu": Contender("lfu", (STEP, STEP)),
}


class Course:
    """A model with its reference, one step's sequences, and a step of any contender."""

    def __init__(self, device: str) -> None:
        workload = WORKLOADS["gpu" if device == "cuda" else "small"]
        problems = read_problems(None)
        tokenizer = load_tokenizer(problems)
        self.policy = Policy(workload.model(device), tokenizer)
        self.policy.keep_reference()
        self.budget, self.ranks = MICRO_BATCH_TOKENS[device], Ranks()
        drawn = make_sequences(workload, problems, tokenizer)
        self.sequences, self.second = (
            _labelled(drawn[start : start + workload.batch]) for start in (0, workload.batch)
        )

    def step(self, contender: Contender, index: int) -> None:
        """One step's gradient. (Optimiser and logging are the same for all.)"""
        step = begin(
            index,
            100,
            0.5,
            0,
            policy=self.policy,
            token_budget=self.budget,
            ranks=self.ranks,
            draw=lambda: self.second,
            memory={"sample_loss": dict.fromkeys((s.sample_id for s in self.sequences), 5.0)},
        )
        sequences: list[Sequence] = self.sequences
        for spec in contender.transforms:
            sequences = list(build_transform(spec)(sequences, step))
        watch = Stopwatch(self.policy.device)
        objective = build_objective(contender.objective)
        accumulate_gradients(self.policy, objective, sequences, self.budget, step, self.ranks, watch)
        self.policy.model.zero_grad()

    def forward(self) -> None:
        """Scores of all targets without gradient: the policy's, or (it is a copy) the reference's."""
        score_sequences(self.policy, self.budget, self.ranks, self.sequences, ())


def _labelled(drawn: list[Sequence]) -> list[Sequence]:
    """Everything that some objective wants to know: pairs (of about equal length), labels, a reference's score."""
    labelled = []
    for row, sequence in enumerate(sorted(drawn, key=len)):
        odd = float(row % 2)
        scalars = {"chosen": 1.0 - odd, "negative": odd, "reference_score": -5.0}
        weight = np.linspace(0.5, 2.0, len(sequence), dtype=np.float32)
        columns = {"weight": weight}
        labelled.append(replace(sequence, group=f"pair{row // 2}", scalars=scalars, columns=columns))
    return labelled


def timed(work: Callable[[], None], device: str) -> float:
    """Seconds that `work` takes: on one thread of a CPU the processor's own, which a busy machine does not change."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def measure(device: str, rounds: int, names: list[str]) -> dict[str, dict[str, float]]:
    """Medians over rounds, the first of which only warms up."""
    course = Course(device)
    found: dict[str, list[float]] = {name: [] for name in names}
    forward: list[float] = []
    for index in range(rounds + 1):
        seconds = {name: timed(partial(course.step, CONTENDERS[name], index), device) for name in names}
        passed = timed(course.forward, device)
        if index:
            forward.append(passed / seconds["nll"])
            for name in names:
                found[name].append(seconds[name] / seconds["nll"])
    price = {REFERENCE: statistics.median(forward), FORWARD: statistics.median(forward), STEP: 1.0}
    rows = {}
    for name, ratios in found.items():
        needs = sum(price[need] for need in CONTENDERS[name].needs)
        cost = statistics.median(ratios)
        rows[name] = {"cost": cost, "low": min(ratios), "high": max(ratios), "needs": needs, "own": cost / (1 + needs)}
    return {name: {key: round(value, 3) for key, value in row.items()} for name, row in rows.items()}


def show(rows: dict[str, dict[str, float]]) -> None:
    """The table, dearest last."""
    table = Table(title="one step's gradient, in likelihood steps (least to most of the rounds)", title_justify="left")
    table.add_column("objective")
    for column in ("cost", "needs beside 1", "cost / (1 + needs)"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        cost = f"{row['cost']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
        table.add_row(name, cost, f"{row['needs']:.2f}" if row["needs"] else "", _own(row["own"]))
    Console(width=100).print(table)


def _own(share: float) -> str:
    return f"{share:.2f}" if share <= BOUND else f"{share:.2f} > {BOUND}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds after the first")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="*", help="these objectives")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ["nll", *(name for name in options.only or CONTENDERS if name != "nll")]
    rows = measure(options.device, options.repetitions, names)
    show(rows)
    if options.output:
        report = {"machine": machine(), "threads": torch.get_num_threads(), "rounds": options.repetitions}
        options.output.write_text(json.dumps(report | {"objectives": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
