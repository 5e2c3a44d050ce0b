"""Continual learning: how much of what a sequence of stages has learned is left at its end.

The accuracy matrix `a` has a row for each stage: `a[t][i]` is the accuracy on task i after stage t, for i up to t.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Matrix = Sequence[Sequence[float]]
"""Row t has t + 1 accuracies: those of the tasks that the stages so far have trained on."""


def continual_metrics(accuracy: Matrix) -> dict[str, float]:
    """Numbers of the accuracies of T tasks in the order of their stages.

    - `average_accuracy`: (1/T) Σ_i a[T][i], at the end.
    - `learned_accuracy`: (1/T) Σ_i a[i][i], of each task right behind its own stage: whoever has learned little has
      little to forget, so sequences compare where these are alike.
    - `forgetting`: (1/(T-1)) Σ_{i<T} (a[T][i] - a[i][i]): negative is forgetting. FM of arXiv 2507.05386; backward
      transfer of Lopez-Paz & Ranzato (arXiv 1706.08840).
    - `forgetting_from_best`: the same against the best of a[i][i] to a[T-1][i] (Chaudhry et al., arXiv 1801.10112, with
      the sign of `forgetting`).

    The last two need a second task. Raises `ValueError` for a matrix of another shape.
    """
    if not accuracy or [len(row) for row in accuracy] != list(range(1, len(accuracy) + 1)):
        raise ValueError(f"expected rows of 1, 2, 3 ... accuracies, found {[len(row) for row in accuracy]}")
    last, earlier = accuracy[-1], range(len(accuracy) - 1)
    found = {
        "average_accuracy": float(np.mean(last)),
        "learned_accuracy": float(np.mean([row[-1] for row in accuracy])),
    }
    if earlier:
        best = [max(row[task] for row in accuracy[task:-1]) for task in earlier]
        found["forgetting"] = float(np.mean([last[task] - accuracy[task][task] for task in earlier]))
        found["forgetting_from_best"] = float(np.mean([last[task] - best[task] for task in earlier]))
    return found


def forgetting_by_problem(
    own: Mapping[str, Mapping[str, float]], last: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Each problem's part in `forgetting`, which is their mean: for intervals, and for comparisons paired by problem.

    `own` and `last`: earlier task -> problem -> share of right answers after the task's own stage, and at the end.
    Every task weighs the same, however many problems it has. Problems that only one of both has scored are left out,
    and tasks without any other.
    """
    common = {
        task: {name: last[task][name] - share for name, share in shares.items() if name in last[task]}
        for task, shares in own.items()
    }
    changes = {task: each for task, each in common.items() if each}
    total = sum(len(each) for each in changes.values())
    return {
        f"{task}/{name}": change * total / (len(changes) * len(each))
        for task, each in changes.items()
        for name, change in each.items()
    }
