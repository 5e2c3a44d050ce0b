"""What was measured, as Markdown: results of claims with their figures, costs of steps, tables of benchmarks."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain.comparison.claim_figure import claim_figure
from posttrain.comparison.map_figure import map_figure
from posttrain.comparison.result import ComparisonResult, Estimate, Measure, from_json
from posttrain.comparison.wording import effect_text, estimate_span, title, value_text

RATIOS = ("speed_ratio", "training_memory_ratio", "process_memory_ratio")


def claim_text(root: Path, name: str, figures: dict[str, str]) -> str:
    """What the claims of a paper (its number), or of one of its files (`31-irm`), showed: a table, a figure (added to
    `figures`), how it was measured. "" without any."""
    pattern = f"{int(name):02d}-*.json" if name.isdecimal() else f"{name}.json"
    path = next(iter(sorted((root / "claims").glob(pattern))), None)
    if path is None:
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    result = from_json(content["comparison"])
    figures[f"{path.stem}.svg"] = claim_figure(result)
    lines = ["| claim | found (95 % interval) | verdict |", "|---|---|---|"]
    for claim in content["claims"]:
        lines.append(f"| {claim['text']} | {found_text(result, claim)} | **{claim['verdict']}** |")
    machine, seeds = content["machine"], len(content["comparison"]["seeds"])
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
    made = f"`posttrain claim run {name}`: {seeds} seeds, {cores} ({machine['cpu']})."
    return "\n".join([*lines, "", f"![{path.stem}: every seed of every arm](figures/{path.stem}.svg)", "", made])


def map_text(root: Path, name: str, figures: dict[str, str]) -> str:
    """Every arm of a comparison with what it came to, in order of imitation, and the map of them."""
    path = root / "claims" / f"{name}.json"
    if not path.is_file():
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    result = from_json(content["comparison"])
    quality = [each for each in result.measures if each.metric == "accuracy"]
    named = {each.metric: each for each in reversed(result.measures)}  # of several stages' the first
    figures[f"{name}-map.svg"] = map_figure(result, quality)
    shown = [named["imitated"], *quality, named["kl"], named["seconds"]]
    found = {arm.name: [result.estimate(each.name, arm.name) for each in shown] for arm in result.arms}
    order = sorted(found, key=lambda arm: -(found[arm][0].mean if found[arm][0] else 0.0))
    rows = [
        [f"`{arm}`", *(estimate_text(each, one) for each, one in zip(shown, found[arm], strict=True))] for arm in order
    ]
    start = [result.estimate(each.name, "base") for each in shown]
    rows.append(["the start", *(estimate_text(each, one) for each, one in zip(shown, start, strict=True))])
    head = ["", *(title(each) for each in shown)]
    return f"![every arm: accuracy against the share of imitation](figures/{name}-map.svg)\n\n{_table(head, rows)}"


def estimate_text(each: Measure, found: Estimate | None) -> str:
    """A mean with its interval; empty where there is none."""
    if found is None:
        return ""
    span = estimate_span(each, found) if each.metric in ("accuracy", "kl") else ""
    return value_text(each, found.mean) + (f" ({span})" if span else "")


def found_text(result: ComparisonResult, claim: dict[str, Any]) -> str:
    """An effect with its interval, in the units of its measure."""
    if claim["effect"] is None or claim["interval"] is None:
        return "not measured"
    shown = next(found for found in result.measures if found.name == claim["metric"])
    over = claim.get("over")
    effect, span = effect_text(shown, claim["effect"], claim["interval"], minus=claim["minus"], over=over)
    unsure = ", and the gap is not sure" if over else ""
    return f"{effect}{' of the gap' if over else ''}{f' ({span})' if span else unsure}"


def cost_text(root: Path, name: str) -> str:
    """What a step of a method costs, where it was measured; "" else."""
    path = root / "benchmarks" / "results" / "objectives-cpu.json"
    row = (_read(path)["objectives"] if path.is_file() else {}).get(name.replace("_", "-"))
    if row is None:
        return ""
    needs = f", of which its formula needs {1 + row['needs']:.2f}" if row["needs"] else ""
    return f"One step of `{name}` costs {row['cost']:.2f} of a plain likelihood step{needs} (`make bench`)."


def method_pages(root: Path) -> dict[Path, str]:
    """docs/methods/ with what claims and benchmarks showed filled in, and the claims' figures."""
    folder, figures = root / "docs" / "methods", dict[str, str]()
    pages = {}

    def filled(match: re.Match[str]) -> str:
        kind, name = match[1], match[2]
        found = {"claim": claim_text, "map": map_text}.get(kind)
        text = found(root, name, figures) if found is not None else cost_text(root, name)
        marker = f"<!-- {kind}:{name} -->"
        return f"{marker}\n{text}\n<!-- end -->" if text else marker

    pattern = re.compile(r"<!-- (claim|cost|map):(\S+) -->(?:\n(?:(?!<!--).*\n)*<!-- end -->)?")
    for path in sorted(folder.glob("*.md")):
        pages[path] = pattern.sub(filled, path.read_text(encoding="utf-8"))
    whole = root / "docs" / "continuum.md"
    if whole.is_file():
        text = pattern.sub(filled, whole.read_text(encoding="utf-8"))
        pages[whole] = re.sub(r"\]\((?:methods/)?figures/", "](methods/figures/", text)
    return pages | {folder / "figures" / name: text for name, text in figures.items()}


def benchmark_page(root: Path) -> str:
    """benchmarks/README.md with the tables of the recorded results."""
    path = root / "benchmarks" / "README.md"
    text, marker = path.read_text(encoding="utf-8").partition("<!-- results -->")[:2]
    tables = "\n\n".join(benchmark_tables(root / "benchmarks" / "results"))
    return f"{text}{marker}\n\n{tables}\n"


def benchmark_tables(folder: Path) -> Iterable[str]:
    """One table for each recorded benchmark."""
    sft = _read(folder / "sft-cpu.json")
    machine = sft["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in sft["versions"].items())
    yield (
        f"Taken on {machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, {versions}. Medians, and "
        "(least to most) of the turns. `ours` is our number divided by the contender's."
    )
    for name, found in sft["workloads"].items():
        yield _workload(name, found)
    yield _engine(_read(folder / "engine-cpu.json"))
    if (folder / "grpo-cpu.json").is_file():
        yield _grpo(_read(folder / "grpo-cpu.json"))
    if (folder / "objectives-cpu.json").is_file():
        yield _objectives(_read(folder / "objectives-cpu.json")["objectives"])


def _workload(name: str, found: dict[str, Any]) -> str:
    rate = found["matrix_gflops"]["median"]
    rows = []
    for contender, row in found["contenders"].items():
        cells = [f"{row['trained_tokens_per_second']['median']:,.0f}", f"{row['share_of_floor']['median']:.2f}"]
        cells += [f"{row['training_mib']['median']:,.0f} MiB"]
        ratios = [row.get(key) for key in RATIOS]
        cells += [f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" if r else "" for r in ratios]
        rows.append([contender, *cells])
    head = ["", "trained tokens/s", "of the floor", "memory of training"]
    head += ["ours: speed", "ours: memory of training", "ours: memory of the process"]
    return f"### {name}: {found['parameters'] / 1e6:.1f}M parameters, {rate:.0f} GFLOP/s\n\n{_table(head, rows)}"


def _engine(found: dict[str, Any]) -> str:
    rows = []
    for kind in ("varied", "equal"):
        row = found[kind]
        theirs = max(row[name]["tokens_per_second"] for name in ("transformers", "transformers_all_rows"))
        rows.append([kind, f"{row['posttrain']['tokens_per_second']:,.0f}", f"{theirs:,.0f}", f"{row['ratio']:.2f}"])
    title = "### engine: generated tokens a second beside transformers' `generate`"
    return f"{title}\n\n{_table(['lengths', 'ours', 'transformers', 'ratio'], rows)}"


def _grpo(found: dict[str, Any]) -> str:
    parts = ["### GRPO: 8 questions, 8 answers each, one update of the small model"]
    parts.append(
        "`equal`: every answer has 64 tokens; `varied`: 64 on average, at most 256. The floor: 2 FLOP for each weight "
        "and drawn token and 6 for each that is learned from; prompts are not counted. Speed is in drawn tokens a "
        "second, as everybody draws lengths of his own."
    )
    for lengths, kind in found["lengths"].items():
        rows = []
        for name, row in kind["contenders"].items():
            cells = [f"{row['steps_per_minute']['median']:.1f}", f"{row['mean_length']:.0f}"]
            cells += [f"{row['share_of_floor']['median']:.2f}", f"{row['training_mib']['median']:,.0f} MiB"]
            ratios = [row.get(key) for key in ("tokens_ratio", *RATIOS[1:])]
            cells += [f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" if r else "" for r in ratios]
            rows.append([name, *cells])
        head = [lengths, "steps a minute", "mean length", "of the floor", "memory of training"]
        parts.append(_table([*head, "ours: speed", "ours: memory of training", "ours: memory of the process"], rows))
        busy = ", by its own processor time, on a machine that did other things too" if kind["clock"] == "cpu" else ""
        parts.append(f"Threads: {kind['threads']}{busy}.")
    parts.append("Seconds of a step:")
    parts.append(_table(*_splits(found["lengths"])))
    return "\n\n".join(parts)


def _splits(kinds: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Where a step's time goes, ours and TRL's, beside what the matrix products alone would take."""
    splits = {
        f"{lengths}, {name}": row["seconds_of_a_step"]
        for lengths, kind in kinds.items()
        for name, row in kind["contenders"].items()
    }
    splits |= {f"{lengths}, floor": kind["floor_seconds"] for lengths, kind in kinds.items()}
    names = list(dict.fromkeys(part for split in splits.values() for part in split))
    rows = [
        [name, *(f"{split[part]:.2f}" if part in split else "" for part in names)] for name, split in splits.items()
    ]
    return ["", *names], rows


def _objectives(found: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['cost']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            f"{1 + row['needs']:.2f}",
            f"{row['own']:.2f}",
        ]
        for name, row in found.items()
    ]
    head = ["objective", "cost", "what its formula needs", "cost / needs"]
    return f"### objectives: one step's gradient, in steps of plain likelihood\n\n{_table(head, rows)}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
