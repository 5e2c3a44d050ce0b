"""Supervised fine-tuning beside TRL's, in turns, on the same tokens: trained tokens a second, peak memory, the floor.

Every contender's every repetition is a process of its own, so that peaks of memory are its own; contenders take turns,
so that a machine that is slower for a while is so for all, and ratios are taken within a turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.floor import count_flop
from benchmarks.workload import ROOT, WORKLOADS
from posttrain.manifest import machine

OURS = "posttrain"
TOLERANCE = 1e-4
"""How far losses of the same batches may be apart, in float32."""


@dataclass(frozen=True)
class Plan:
    """Who trains what, how often."""

    workload: str
    contenders: tuple[str, ...]
    repetitions: int


def plans(options: argparse.Namespace) -> list[Plan]:
    theirs = ("TRL", "TRL, 8 at once", "TRL, packed") if find_spec("trl") else ()
    ours = (OURS, "posttrain, compiled") if options.compile else (OURS,)
    if options.workload:
        return [Plan(options.workload, (*ours, *theirs, "plain logits"), options.repetitions or 3)]
    if options.device == "cuda":
        return [Plan("gpu", (*ours, *theirs[:1]), options.repetitions or 3)]
    if options.quick:
        return [
            Plan("small", (*ours, *theirs[1:]), options.repetitions or 1),
            Plan("large-vocabulary", (*ours, "plain logits"), options.repetitions or 1),
        ]
    return [
        Plan("small", (*ours, *theirs), options.repetitions or 3),
        Plan("large-vocabulary", (*ours, *theirs[1:], "plain logits"), options.repetitions or 2),
    ]


def measure(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """All turns of a plan, and what comes out of them."""
    turns: list[dict[str, Any]] = []
    for repetition in range(plan.repetitions):
        names = ["floor", *plan.contenders]
        turn = {}
        for name in names:
            print(f"{plan.workload}, turn {repetition + 1} of {plan.repetitions}: {name}", file=sys.stderr, flush=True)
            turn[name] = run(name, plan.workload, options)
        turns.append(turn)
    contenders = {name: summary(name, plan, turns, options.clock) for name in plan.contenders}
    return {
        "parameters": turns[0][OURS]["parameters"],
        "threads": turns[0][OURS]["threads"],
        "repetitions": plan.repetitions,
        "steps": WORKLOADS[plan.workload].steps,
        "sequences_per_step": WORKLOADS[plan.workload].batch,
        "dtype": WORKLOADS[plan.workload].dtype,
        "matrix_gflops": spread([turn["floor"]["rate"] / 1e9 for turn in turns]),
        "contenders": contenders,
    }


def run(name: str, workload: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.contender", name, workload, "--device", options.device]
    command += ["--clock", options.clock]
    if options.data:
        command += ["--data", str(options.data.resolve())]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"contender '{name}' of workload '{workload}' failed:\n{found.stderr[-3000:]}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def summary(name: str, plan: Plan, turns: list[dict[str, Any]], clock: str) -> dict[str, Any]:
    """Rates, peaks, share of the floor; ratios of ours to this one, turn by turn."""
    workload = WORKLOADS[plan.workload]

    def rate(turn: dict[str, Any], who: str, kind: str) -> float:
        return float(sum(turn[who]["steps"][kind]) / sum(turn[who]["steps"][clock]))

    def share(turn: dict[str, Any]) -> float:
        steps = turn[name]["steps"]
        flop = count_flop(workload, sum(steps["input"]), sum(steps["trained"]))
        return float(flop / turn["floor"]["rate"] / sum(steps[clock]))

    row: dict[str, Any] = {
        "trained_tokens_per_second": spread([rate(turn, name, "trained") for turn in turns]),
        "input_tokens_per_second": spread([rate(turn, name, "input") for turn in turns]),
        "share_of_floor": spread([share(turn) for turn in turns]),
        "training_mib": spread([turn[name]["memory"]["training"] for turn in turns]),
        "process_mib": spread([turn[name]["memory"]["process"] for turn in turns]),
        "losses": turns[0][name]["steps"]["losses"],
        "settings": turns[0][name]["settings"],
    }
    if name != OURS:
        row["speed_ratio"] = spread([rate(turn, OURS, "trained") / rate(turn, name, "trained") for turn in turns])
        for kind in ("training", "process"):
            ratios = [turn[OURS]["memory"][kind] / turn[name]["memory"][kind] for turn in turns]
            row[f"{kind}_memory_ratio"] = spread(ratios)
    if name != OURS and "packed" not in name:  # packed rows put other sequences together
        pairs = zip(turns[0][OURS]["steps"]["losses"], row["losses"], strict=True)
        row["loss_difference"] = max(abs(ours - theirs) for ours, theirs in pairs)
    return row


def spread(values: list[float]) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def show(workload: str, found: dict[str, Any], console: Console) -> None:
    """The table of a workload: medians, and (least to most) of the ratios."""
    title = (
        f"{workload}: {found['parameters'] / 1e6:,.1f}M parameters, {found['dtype']}, {found['sequences_per_step']} "
        f"sequences a step, {found['threads']} threads, {found['matrix_gflops']['median']:,.0f} GFLOP/s"
    )
    columns = (
        "trained tokens/s",
        "of floor",
        "training MiB",
        "process MiB",
        "ours: speed",
        "training memory",
        "process memory",
    )
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in found["contenders"].items():
        cells = [f"{row['trained_tokens_per_second']['median']:,.0f}", f"{row['share_of_floor']['median']:.2f}"]
        cells += [f"{row[kind]['median']:,.0f}" for kind in ("training_mib", "process_mib")]
        ratios = ("speed_ratio", "training_memory_ratio", "process_memory_ratio")
        cells += [_ratio(row[kind]) if kind in row else "" for kind in ratios]
        table.add_row(name, *cells)
    console.print(table)


def _ratio(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"


def disagreements(workload: str, found: dict[str, Any]) -> list[str]:
    """Contenders whose losses of the same batches are not ours."""
    if found["dtype"] != "float32":
        return []
    return [
        f"{workload}: losses of '{name}' are {row['loss_difference']:.2e} from ours, more than {TOLERANCE:g}"
        for name, row in found["contenders"].items()
        if row.get("loss_difference", 0.0) > TOLERANCE
    ]


def versions() -> dict[str, str]:
    found = {}
    for package in ("posttrain", "torch", "transformers", "trl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one turn of fewer contenders; nothing is kept")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=Path, help="JSONL with question and answer; default: GSM8K, else generated")
    parser.add_argument("--threads", type=int, help="default: torch's own choice, one for each core")
    parser.add_argument("--repetitions", type=int, help="turns; default: 3, large vocabulary 2, quick 1")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: one thread of a busy machine")
    parser.add_argument("--compile", action="store_true", help="also ours with torch.compile (compiling takes minutes)")
    parser.add_argument("--workload", choices=list(WORKLOADS), help="only this one")


def measure_all(options: argparse.Namespace, output: Path | None) -> list[str]:
    """Measure, print, keep; returns what is wrong."""
    console = Console(width=150)
    load = os.getloadavg()[0]
    report: dict[str, Any] = {"machine": machine() | {"load_before": round(load, 2)}, "versions": versions()}
    report["command"] = "python -m benchmarks.run " + " ".join(sys.argv[1:])
    report["data"] = options.data.name if options.data else "GSM8K, or generated word problems where it is absent"
    report["workloads"] = {}
    for plan in plans(options):
        report["workloads"][plan.workload] = measure(plan, options)
        if output is not None:  # what is measured is kept, should a later workload fail
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=2) + "\n")
    if load > 0.5:
        console.print(f"The machine was not quiet before this (load {load:.1f}): ratios may hold, rates do not.")
    wrong = []
    for name, found in report["workloads"].items():
        show(name, found, console)
        wrong += disagreements(name, found)
    if output is not None:
        console.print(f"kept in {output}")
    return wrong
