"""Reinforcement learning beside TRL's, in turns, on the same questions: steps a minute, peak memory, the floor.

    python -m benchmarks.grpo --repetitions 3 --output benchmarks/results/grpo-cpu.json

GRPO on the small model: 8 questions, 8 answers each, one update. `equal`: every answer has 64 tokens. `varied`: lengths
are about geometric with mean 64, at most 256. Every contender's every repetition is a process of its own, contenders
take turns, and ratios are taken within a turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.floor import count_rollout_flop
from benchmarks.grpo_contender import LONGEST, PROMPTS, SAMPLES, STEPS, WORKLOAD
from benchmarks.sft import OURS, spread, versions
from benchmarks.workload import ROOT
from posttrain.manifest import machine

PARTS = ("generate", "reward", "score", "forward", "backward", "optimiser")
"""What a step's time goes to."""


def measure(lengths: str, contenders: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """All turns of one kind of lengths, and what comes out of them."""
    turns, load = [], os.getloadavg()[0]
    for repetition in range(options.repetitions):
        turn = {}
        for name in ("floor", *contenders):
            print(f"{lengths}, turn {repetition + 1} of {options.repetitions}: {name}", file=sys.stderr, flush=True)
            turn[name] = run(name, lengths, options)
        turns.append(turn)
    return {
        "threads": turns[0][OURS]["threads"],
        "clock": options.clock,
        "load_before": round(load, 2),
        "repetitions": options.repetitions,
        "steps": STEPS,
        "prompts": PROMPTS,
        "samples": SAMPLES,
        "longest": LONGEST[lengths],
        "prompt_length": options.prompt_length,
        "matrix_gflops": spread([turn["floor"]["rate"] / 1e9 for turn in turns]),
        "contenders": {name: summary(name, turns, options.clock) for name in contenders},
    }


def run(name: str, lengths: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.grpo_contender", name, lengths, "--device", options.device]
    command += ["--clock", options.clock]
    if options.prompt_length:
        command += ["--prompt-length", str(options.prompt_length)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"contender '{name}' with {lengths} lengths failed:\n{found.stderr[-3000:]}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def summary(name: str, turns: list[dict[str, Any]], clock: str) -> dict[str, Any]:
    """Steps a minute, tokens a second, peaks, parts, share of the floor; ratios of ours to this one, turn by turn."""

    def steps_per_minute(turn: dict[str, Any], who: str) -> float:
        seconds = turn[who]["steps"][clock]
        return 60 * len(seconds) / sum(seconds)

    def tokens_per_second(turn: dict[str, Any], who: str) -> float:
        return float(sum(turn[who]["steps"]["trained"]) / sum(turn[who]["steps"][clock]))

    def share(turn: dict[str, Any]) -> float:
        steps = turn[name]["steps"]
        flop = sum(count_rollout_flop(WORKLOAD, sum(steps["trained"])))
        return float(flop / turn["floor"]["rate"] / sum(steps[clock]))

    steps = [turn[name]["steps"] for turn in turns]
    row: dict[str, Any] = {
        "steps_per_minute": spread([steps_per_minute(turn, name) for turn in turns]),
        "drawn_tokens_per_second": spread([tokens_per_second(turn, name) for turn in turns]),
        "mean_length": round(sum(sum(s["trained"]) for s in steps) / (len(steps) * STEPS * PROMPTS * SAMPLES), 1),
        "share_of_floor": spread([share(turn) for turn in turns]),
        "training_mib": spread([turn[name]["memory"]["training"] for turn in turns]),
        "process_mib": spread([turn[name]["memory"]["process"] for turn in turns]),
        "seconds_of_a_step": parts(steps),
        "settings": turns[0][name]["settings"],
    }
    if name != OURS:
        row["speed_ratio"] = spread([steps_per_minute(t, OURS) / steps_per_minute(t, name) for t in turns])
        row["tokens_ratio"] = spread([tokens_per_second(t, OURS) / tokens_per_second(t, name) for t in turns])
        for kind in ("training", "process"):
            ratios = [turn[OURS]["memory"][kind] / turn[name]["memory"][kind] for turn in turns]
            row[f"{kind}_memory_ratio"] = spread(ratios)
    return row


def parts(steps: list[dict[str, list[float]]]) -> dict[str, float]:
    """Seconds of the wall clock that a step spends on each part (medians of the turns' means), and on the rest."""
    found = {
        part: statistics.median(statistics.mean(turn[part]) for turn in steps) for part in PARTS if part in steps[0]
    }
    whole = statistics.median(statistics.mean(turn["wall"]) for turn in steps)
    found["rest"] = whole - sum(found.values())
    return {name: round(seconds, 3) for name, seconds in found.items()}


def floor(found: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step that the matrix products of drawing and of learning alone would take."""
    drawn = found["contenders"][OURS]["mean_length"] * PROMPTS * SAMPLES
    rate = found["matrix_gflops"]["median"] * 1e9
    generate, learn = (flop / rate for flop in count_rollout_flop(WORKLOAD, drawn))
    return {"generate": round(generate, 3), "forward": round(learn / 3, 3), "backward": round(2 * learn / 3, 3)}


def show(lengths: str, found: dict[str, Any], console: Console) -> None:
    """The table of medians with (least to most) of the ratios, and where a step's time goes."""
    title = f"{lengths} lengths, {found['threads']} threads, {found['matrix_gflops']['median']:,.0f} GFLOP/s"
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    columns = ("steps/minute", "mean length", "of floor", "training MiB", "process MiB")
    for column in (*columns, "ours: speed", "training memory", "process memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in found["contenders"].items():
        cells = [f"{row['steps_per_minute']['median']:.1f}", f"{row['mean_length']:.1f}"]
        cells += [f"{row['share_of_floor']['median']:.2f}"]
        cells += [f"{row[kind]['median']:,.0f}" for kind in ("training_mib", "process_mib")]
        for kind in ("tokens_ratio", "training_memory_ratio", "process_memory_ratio"):
            ratio = row.get(kind)
            cells.append(f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else "")
        table.add_row(name, *cells)
    console.print(table)
    for name, row in found["contenders"].items():
        split = ", ".join(f"{part} {seconds:.2f}" for part, seconds in row["seconds_of_a_step"].items())
        console.print(f"seconds of a step, {name}: {split}")
    floors = ", ".join(f"{part} {seconds:.2f}" for part, seconds in found["floor_seconds"].items())
    console.print(f"seconds of a step, floor: {floors}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="default: torch's own choice, one for each core")
    parser.add_argument("--repetitions", type=int, default=3, help="turns")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: one thread of a busy machine")
    parser.add_argument("--lengths", choices=list(LONGEST), help="only these")
    parser.add_argument("--prompt-length", type=int, help="tokens of every question; default: as GSM8K's are")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    console = Console(width=150)
    report: dict[str, Any] = {"machine": machine(), "versions": versions(), "lengths": {}}
    if options.lengths and options.output and options.output.exists():  # the other lengths stay as they were measured
        report["lengths"] = json.loads(options.output.read_text(encoding="utf-8"))["lengths"]
    contenders = (OURS, *(("TRL", "TRL, 8 at once") if find_spec("trl") else ()))
    for lengths in [options.lengths] if options.lengths else LONGEST:
        found = measure(lengths, contenders, options)
        report["lengths"][lengths] = found | {"floor_seconds": floor(found)}
        show(lengths, report["lengths"][lengths], console)
        if options.output:
            options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
