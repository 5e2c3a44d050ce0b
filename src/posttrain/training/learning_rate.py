"""Learning-rate schedules: the factor on the peak rate, as a function of the step."""

import math
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine", "wsd"]


def learning_rate_factor(
    step: int, total: int, name: ScheduleName, *, warmup: float = 0.0, decay: float = 0.2, floor: float = 0.0
) -> float:
    """The factor of step `step` (0-based) of `total`.

    `warmup`: steps of linear rise from 0; a value below 1 is a share of the run. Then "constant"; "linear" or "cosine"
    down to `floor`; "wsd" (warm-up, stable, decay; arXiv 2404.06395): constant, and linear to `floor` over the last
    `decay` share of the run.
    """
    rise = warmup * total if warmup < 1 else warmup
    if step < rise:
        return (step + 1) / (math.floor(rise) + 1)
    if name == "constant":
        return 1.0
    start = max(rise, total * (1 - decay)) if name == "wsd" else rise
    done = min(1.0, max(0.0, (step - start) / max(1.0, total - start)))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 1 - done
    return floor + (1 - floor) * shape
