"""Reward saturation: when a training reward stops rising, and what held-out accuracy did before and after."""

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Saturation:
    """`step` of saturation and `last` logged one; gains of held-out accuracy `before` and `after` it (shares; None
    where it was not watched)."""

    step: float
    last: float
    before: float | None = None
    after: float | None = None


def saturation_step(steps: List[float], rewards: npt.ArrayLike, *, window: int = 1, share: float = 0.95) -> float:
    """s*: the first logged step at which the trailing mean of the reward is within `share` of its best.

    m_s = mean of the last `window` rewards (fewer at the start);  s* = first step with m_s >= `share` · max m; below 0,
    with m_s >= max m - (1 - `share`) |max m|. arXiv 2604.18574 says what saturation is, not by which rule: this one is
    sheet 13's reconstruction. Raises `ValueError` for no points.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.shape != (len(steps),) or not len(steps) or window < 1:
        raise ValueError(f"expected a reward for each of {len(steps)} steps and a window of 1 or more, found {window}")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    best = means.max()
    reached = means >= best - (1 - share) * abs(best) - 1e-12  # sums in floats: .9 may come out as .8999...
    return steps[int(reached.argmax())]


def saturation(rows: List[Mapping[str, Any]], watched: List[Mapping[str, Any]] = ()) -> Saturation | None:
    """s* of a train stage's rows of metrics.jsonl by their `reward`, and what `watched` ones say of the accuracy.

    The window is a tenth of the rows. The accuracy at s* is that of the first evaluation from there on. None where no
    reward was logged.
    """
    points = [(row["step"], row["reward"]) for row in rows if row.get("reward") is not None]
    if not points:
        return None
    steps, rewards = zip(*points, strict=True)
    found = saturation_step(steps, rewards, window=max(1, round(len(steps) / 10)))
    seen = [(row["step"], row["accuracy"]) for row in watched if row.get("accuracy") is not None]
    if len(seen) < 2:
        return Saturation(found, steps[-1])
    first, last = seen[0][1], seen[-1][1]
    at = next((accuracy for step, accuracy in seen if step >= found), last)
    return Saturation(found, steps[-1], at - first, last - at)
