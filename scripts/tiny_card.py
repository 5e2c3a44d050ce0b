"""Write the card of the small base model from the run that made it: `python scripts/tiny_card.py RUN FOLDER`."""

import json
import shutil
import sys
from pathlib import Path

TASKS = ("chains", "multiplication", "countdown", "word_problems", "logic", "facts")


def main(run: Path, folder: Path) -> None:
    """Copy the weights, and write README.md and scores.json beside them."""
    manifest = json.loads((run / "manifest.json").read_text())
    (name, train), *_ = ((n, s) for n, s in manifest["stages"].items() if s["kind"] == "train")
    shutil.copy(run / "models" / name / "model.safetensors", folder)
    scores = {
        task: {
            level: manifest["stages"][f"eval_{task}{suffix}"]["summary"]
            for level, suffix in (("in", ""), ("harder", "_harder"))
        }
        for task in TASKS
    }
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    rows = [f"| {task} | {_cell(found['in'])} | {_cell(found['harder'])} |" for task, found in scores.items()]
    summary, machine = train["summary"], manifest["machine"]
    text = CARD.format(
        rows="\n".join(rows),
        tokens=f"{summary['trained_tokens'] / 1e6:.1f}",
        samples=f"{summary['samples']:,}",
        steps=f"{summary['steps']:,}",
        epochs=f"{manifest['recipe']['stages'][name]['epochs']:g}",
        minutes=f"{train['seconds'] / 60:.0f}",
        cpu=machine["cpu"],
        problems=int(scores["chains"]["in"]["problems"]),
    )
    (folder / "README.md").write_text(text)


def _cell(found: dict[str, float]) -> str:
    low, high = 100 * found["accuracy_low"], 100 * found["accuracy_high"]
    return f"{100 * found['accuracy']:.1f} % ({low:.1f} to {high:.1f})"


CARD = """\
---
license: apache-2.0
---
# tiny: the small base model of posttrain

A Qwen3-shaped causal language model of 2.0 million parameters (5 layers, width 192, context 1024), the start of the
project's demo, tests and claim runs. It is deliberately unfinished: right on a good part of the easier problems of each
task, and on fewer of the harder ones. It knows nothing else, and is of no use for anything else.

Trained from scratch by `posttrain run tiny-base` on {samples} demonstrations of the project's own generated tasks,
each in several styles: {epochs} passes, {steps} steps, {tokens} million trained tokens, {minutes} minutes on one core
({cpu}). No other text, no other data.

Tokenizer: byte-level; digits and punctuation marks are single tokens, words of the tasks are merged; made by
`scripts/tiny_tokenizer.py`. The chat template marks what the assistant writes. `<think>`, `<answer>`, `<tool_call>`,
`<image>`, `<plan>`, `<execute>`, `<latent>` and their ends are single tokens that survive decoding; `<|mask|>` and
eleven `<|reserved_N|>` are free.

## What it scores

Greedy answers to {problems} problems of each task's test part (never among the demonstrations; for the facts: among
them, as knowledge must be), share of right answers with its 95 % interval:

| task | in distribution | harder |
|---|---|---|
{rows}

Made by `scripts/tiny_card.py` from the run; all numbers are in `scores.json`.
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
