"""The same to spend for every arm: steps from steps, tokens or seconds; and what it will all take, roughly."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from posttrain.comparison.arms import trained_stages, with_steps
from posttrain.comparison.spec import Budget
from posttrain.errors import UserError
from posttrain.recipe import Evaluate, Recipe
from posttrain.reporting.reading import read_run
from posttrain.run import plan
from posttrain.stages import Plan
from posttrain.terminal import Terminal

START_SECONDS = 6.0
TRAIN_EFFICIENCY, ANSWER_EFFICIENCY = 0.4, 0.15
"""Shares of the rate of matrix products that a small model reaches on a CPU: for an estimate, not a promise."""


def planned(recipe: Recipe, root: Path, terminal: Terminal) -> dict[str, Plan]:
    """Check an arm's recipe without computing. Its tokens are kept beside the arms' folders, where all find them."""
    return plan(recipe.model_copy(update={"out": str(root / ".plan")}), terminal)


def budgeted(recipe: Recipe, plans: Mapping[str, Plan], budget: Budget, pace: float | None = None) -> Recipe:
    """The recipe with steps written into its train stages, so that together they spend the budget.

    Several train stages share it as the recipe's own steps do. `pace`: seconds of a step, for a budget of seconds.
    Raises `UserError` where the data come from an earlier stage, and so nobody knows the steps yet.
    """
    stages = trained_stages(recipe)
    if budget.steps is not None and len(stages) == 1:
        return with_steps(recipe, {stages[0]: budget.steps})
    if not any((budget.steps, budget.tokens, budget.seconds)):
        return recipe
    share = {name: float(steps) for name, steps in steps_of(recipe, plans).items()}
    tokens = {name: plans[name].numbers.get("tokens_per_step") for name in stages}
    unknown = [name for name in stages if name not in share or (budget.tokens and tokens[name] is None)]
    if unknown:
        raise UserError(
            f"stage '{unknown[0]}': its data are made by an earlier stage, so nobody knows how many tokens or "
            "steps they are: give a budget of steps, and where several stages train 'steps' of its own"
        )
    whole = sum(share.values())
    if budget.steps is not None:
        each = 1.0
    elif budget.tokens is not None:
        each = sum(share[name] * float(tokens[name] or 0) for name in stages) / whole
    else:
        assert pace is not None
        each = pace
    total = (budget.steps or budget.tokens or budget.seconds or 0) / each
    return with_steps(recipe, {name: max(1, round(total * share[name] / whole)) for name in stages})


def steps_of(recipe: Recipe, plans: Mapping[str, Plan]) -> dict[str, int]:
    """Train stage -> its steps, where they are known before the start."""
    found = {
        name: getattr(recipe.stages[name], "steps", None) or plans[name].numbers.get("steps")
        for name in trained_stages(recipe)
    }
    return {name: int(steps) for name, steps in found.items() if steps is not None}


def pace_of(pilot: Path) -> float:
    """Seconds of a step, as a pilot's run folder has it: medians over its steps but the first two, which are slow.

    Of several train stages the mean.
    """
    medians: list[float] = []
    for kinds in read_run(pilot).metrics.values():
        seconds = [row["seconds"] for row in kinds.get("train", [])]
        gaps = [later - earlier for earlier, later in pairwise(seconds)]
        medians.append(median(gaps[1:] or gaps or seconds))
    return max(sum(medians) / len(medians), 1e-6)


def estimated_seconds(recipe: Recipe, plans: Mapping[str, Plan], rate: float) -> float | None:
    """What a run may take on one core of `rate` FLOP/s: 6 FLOP a parameter and trained token, 2 and answered token."""
    steps, total = steps_of(recipe, plans), START_SECONDS
    parameters = max((float(plan.numbers.get("parameters", 0)) for plan in plans.values()), default=0.0)
    for name, stage in recipe.stages.items():
        numbers = plans[name].numbers if name in plans else {}
        if name in steps and "tokens_per_step" in numbers:
            total += 6 * parameters * steps[name] * float(numbers["tokens_per_step"]) / (TRAIN_EFFICIENCY * rate)
        elif isinstance(stage, Evaluate) and "answers" in numbers:
            tokens = float(numbers["answers"]) * stage.max_new_tokens / 2
            total += 2 * parameters * tokens / (ANSWER_EFFICIENCY * rate)
        elif stage.kind in ("train", "evaluate", "generate"):
            return None
    return total


def matrix_rate(size: int = 512, repeats: int = 8) -> float:
    """FLOP/s of a matrix product of float32 on one core of this machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.ones(size, size)
        best = min(_timed(matrix) for _ in range(repeats))
    finally:
        torch.set_num_threads(threads)
    return 2 * size**3 / best


def _timed(matrix: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - started


def spent_otherwise(budget: Budget, spent: Mapping[str, Sequence[float]]) -> list[str]:
    """A note for every arm that spent clearly more or less than the tokens or seconds that it was given."""
    wanted, unit = (budget.tokens, "input tokens") if budget.tokens else (budget.seconds, "seconds")
    notes = []
    for arm, amounts in spent.items():
        mean = sum(amounts) / len(amounts) if amounts else 0.0
        if wanted and mean and abs(mean / wanted - 1) > 0.05:
            notes.append(f"arm '{arm}' spent {mean:,.0f} {unit} on average, not {wanted:,.0f}")
    return notes
