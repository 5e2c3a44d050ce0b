"""A comparison as it could have come out, from a few numbers: for tests of the page and of the statistics.

`python tests/comparison/made_up.py` writes `example.json` anew.
"""

from pathlib import Path

import numpy as np

from posttrain.comparison.analysis import LEVEL, contrasts, estimates, measures_of, sentences
from posttrain.comparison.result import ArmResult, ArmRun, BudgetResult, ClaimResult, ComparisonResult, Failure, Trial

STAGES = {"test": 0.55, "longer": 0.25, "kept": 0.5}
"""Evaluate stage -> accuracy of the start."""

GAINS = {
    "sft": {"test": 0.25, "longer": 0.10, "kept": -0.20},
    "dft": {"test": 0.22, "longer": 0.22, "kept": -0.05},
    "asft": {"test": 0.24, "longer": 0.18, "kept": -0.02},
}
KL = {"sft": 0.31, "dft": 0.17, "asft": 0.09}
STEP_SECONDS = {"sft": 0.30, "dft": 0.31, "asft": 0.42}


def arm_run(arm: str, seed: int, rng: np.random.Generator, problems: int, steps: int = 40) -> ArmRun:
    """One seed of an arm: shares of problems that are easy or hard for every arm alike, and a curve that falls."""
    shares, values = {}, {}
    for number, (stage, start) in enumerate(STAGES.items()):
        hardness = np.random.default_rng(number).random(problems)
        chance = np.clip(start + GAINS.get(arm, {}).get(stage, 0.0) + rng.normal(0, 0.01), 0, 1)
        right = np.where(rng.random(problems) < 0.15, rng.random(problems) < chance, hardness < chance).astype(float)
        shares[stage] = right.tolist()
        values |= {f"{stage}.accuracy": float(right.mean()), f"{stage}.mean_length": 24 + float(rng.normal(0, 0.5))}
        values[f"{stage}.log_likelihood"] = -0.4 + 0.2 * float(right.mean()) + float(rng.normal(0, 0.01))
        values[f"{stage}.kl"] = max(0.0, KL.get(arm, 0.0) + float(rng.normal(0, 0.01))) if arm != "base" else 0.0
        values[f"{stage}.entropy"] = 0.3 - KL.get(arm, 0.0) / 3 + float(rng.normal(0, 0.01))
    if arm == "base":
        return ArmRun(seed, "base/seed0", 12.0, values, shares)
    step = np.arange(1, steps + 1) * 150 / steps
    pace = STEP_SECONDS[arm] * (1 + 0.03 * rng.normal())
    loss = 0.15 + 0.5 * np.exp(-step / 40) + rng.normal(0, 0.01, steps)
    columns = {
        "step": step,
        "tokens": step * 750,
        "input_tokens": step * 1340,
        "seconds": step * pace,
        "loss": loss,
        "lr": 1e-3 * 0.5 * (1 + np.cos(np.pi * step / 150)),
        "grad_norm": 1 + rng.random(steps),
    }
    at = [0, 50, 100, 150]
    watched = {"step": at, "accuracy": [0.5, 0.6, 0.7, 0.75], "held_out_loss": [0.6, 0.3, 0.25, 0.24]}
    values |= {
        "train.seconds": 150 * pace,
        "train.trained_tokens": 150 * 750.0 + seed,
        "train.input_tokens": 150 * 1340.0,
    }
    values |= {"train.loss": float(loss[-1]), "train.steps": 150.0, "train.log.grad_norm": 1.4}
    curves = {"train": {name: [float(f"{x:.5g}") for x in column] for name, column in columns.items()}}
    return ArmRun(
        seed,
        f"{arm}/seed{seed}",
        150 * pace + 15,
        values,
        shares,
        curves,
        {"train": {k: list(v) for k, v in watched.items()}},
    )


def example(problems: int = 30, seeds: int = 3) -> ComparisonResult:
    """Three arms, the start, a claim of each verdict, a tuning and a run that failed."""
    rng = np.random.default_rng(36)
    arms = []
    for name in GAINS:
        runs = [arm_run(name, seed, rng, problems) for seed in range(seeds)]
        chosen = {"lr": 1e-3}
        given = {} if name == "sft" else {"objective": name}
        arms.append(
            ArmResult(
                name, "sft" if name != "asft" else "asft", f"{name} on chains", given, chosen, {"train": 150}, runs
            )
        )
    base = ArmResult("base", "sft", "the start", {}, {}, {}, [arm_run("base", 0, rng, problems)])
    measures = measures_of(arms)
    found = contrasts(arms, base, measures)
    ids = {stage: [f"{stage}{number:04d}" for number in range(problems)] for stage in STAGES}
    trials = [
        Trial(name, {"lr": lr}, 0, float(np.round(0.6 + rng.normal(0, 0.02) + (lr == 1e-3) * 0.05, 4)), lr == 1e-3)
        for name in GAINS
        for lr in (3e-4, 1e-3)
    ]
    per_seed = {arm.name: [run.values["longer.accuracy"] for run in arm.runs] for arm in arms}
    claims = [
        ClaimResult("DFT is better than SFT on longer problems", "longer.accuracy", "dft", "sft", 0.0, None,
                    list(range(seeds)), {k: per_seed[k] for k in ("dft", "sft")}, 0.12, [0.03, 0.21], "supported",
                    "dft minus sft is +12.0 points (95 % interval 3.0 to 21.0): supported, it had to be 0.0 or more"),
        ClaimResult("ASFT is at least as right as DFT on longer problems", "longer.accuracy", "asft", "dft", 0.0, None,
                    list(range(seeds)), {k: per_seed[k] for k in ("asft", "dft")}, -0.02, [-0.09, 0.05], "inconclusive",
                    "asft minus dft is -2.0 points (95 % interval -9.0 to 5.0): inconclusive"),
        ClaimResult("DFT keeps half of what the model could do before", "kept.accuracy", "dft", None, 0.5, None,
                    list(range(seeds)), {"dft": [0.42, 0.43, 0.41]}, 0.42, [0.36, 0.48], "not supported",
                    "dft is at 42.0 % (95 % interval 36.0 to 48.0): not supported, it had to be 50.0 or more"),
    ]  # fmt: skip
    return ComparisonResult(
        name="36-asft",
        description="SFT, DFT and ASFT from the same start on chained arithmetic",
        paper=36,
        seeds=list(range(seeds)),
        budget=BudgetResult("steps", 150, {}),
        measures=measures,
        problems=ids,
        arms=arms,
        base=base,
        estimates=estimates([*arms, base], measures),
        contrasts=found,
        sentences=sentences(found, measures),
        claims=claims,
        tune_on="validation.accuracy",
        trials=trials,
        failures=[Failure("otr", 0, "otr/seed0", "exit code 1", ["error: NonFinite: loss of step 12 is not finite"])],
        notes=["arm 'otr' has no finished run and is left out"],
        spec={"recipe": "sft", "arms": {name: {} for name in GAINS}, "seeds": seeds, "budget": {"steps": 150}},
        created="2026-03-01T14:05:00+00:00",
        seconds=412.0,
        jobs=2,
        level=LEVEL,
        command="posttrain compare sft dft asft --seeds 3 --steps 150",
        versions={"posttrain": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        machine={
            "cpu": "a processor",
            "cores": 2,
            "memory_gib": 16.0,
            "gpu": None,
            "system": "Linux",
            "python": "3.11",
        },
        git_commit="0123456789abcdef",
    )


if __name__ == "__main__":
    import json

    path = Path(__file__).with_name("example.json")
    path.write_text(json.dumps(example().to_json(), ensure_ascii=False) + "\n", encoding="utf-8")
