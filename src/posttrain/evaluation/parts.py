"""pass@k by parts of the score: does an answer compile, beside does it mean the same.

One number hides the gap between the two (arXiv 2604.13515): what compiles often says something else.
"""

from collections.abc import Mapping
from collections.abc import Sequence as List

import numpy as np

from posttrain.errors import UserError, nearest
from posttrain.evaluation.metrics import draw_counts, pass_at_k
from posttrain.evaluation.result import Answer

_ROUNDING = 1e-9  # 0.7 that was added up is 0.7


def check_parts(answers: List[Answer], passes: Mapping[str, float]) -> None:
    """Raises `UserError` for a part that no answer's score has."""
    known = sorted({name for answer in answers for name in answer.parts})
    for name in passes:
        if name not in known:
            raise UserError(
                f"'passes' names '{name}', which is no part of these answers' scores: {nearest(name, known)}"
            )


def part_metrics(
    groups: List[List[Answer]], passes: Mapping[str, float], n: int, *, right_at: float = 1.0
) -> dict[str, float]:
    """Of scored answers together by problem; an answer passes a part from the value that `passes` gives, inclusive.

    - `pass@k/PART` for k = 1, 2, 4 ... n: over problems with at least k draws.
    - `gap/PART`: the share of answers that pass the part, less the share that are right (value `right_at`), by problem.
    - `best@n`: the highest value of a problem's draws, and `best@n/PART`: over problems of which some draw passes.
    """
    if not passes:
        return {}
    values = [[float(answer.value or 0.0) for answer in group] for group in groups]
    best = np.array([max(value) for value in values])
    complete = np.array([len(group) >= n for group in groups])
    metrics = {f"best@{n}": float(best[complete].mean())} if complete.any() else {}
    draws = [len(group) for group in groups]
    right = np.array([np.mean([v >= right_at - _ROUNDING for v in value]) for value in values])
    for part, least in passes.items():
        passed = [sum(a.parts.get(part, -np.inf) >= least - _ROUNDING for a in group) for group in groups]
        for k in draw_counts(n):
            each = pass_at_k(draws, passed, k)
            if not np.isnan(each).all():
                metrics[f"pass@{k}/{part}"] = float(np.nanmean(each))
        metrics[f"gap/{part}"] = float(np.mean(np.divide(passed, draws) - right))
        some = complete & (np.array(passed) > 0)
        if some.any():
            metrics[f"best@{n}/{part}"] = float(best[some].mean())
    return metrics
