"""Item response: how accuracy rises with the share of a solution that is given, fitted to one problem's own answers.

f(p) = b + (1 - b) / (1 + exp(-k (p + μ))) with slope k, ability μ (its middle is at p = -μ) and guessing rate b.
SEELE (arXiv 2509.06923, equation 12); bounds and starting values are those of sheet 09, for the paper gives none.
"""

import math
from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = (0.01, -1.5, 0.0), (50.0, 0.5, 0.95)
"""Bounds of k, μ, b."""
STARTS = ((10.0, -0.5, 0.01), (10.0, -0.2, 0.01), (10.0, -0.8, 0.01))


@dataclass(frozen=True)
class Curve:
    """An accuracy curve; see above."""

    slope: float
    ability: float
    guessing: float

    def accuracy(self, rate: float) -> float:
        """f(p)."""
        return self.guessing + (1 - self.guessing) / (1 + math.exp(-self.slope * (rate + self.ability)))

    def rate(self, accuracy: float) -> float:
        """The rate in [0, 1] whose accuracy that is: ln((a - b) / (1 - a)) / k - μ; 0 where guessing is as good."""
        if self.guessing >= accuracy:
            return 0.0
        found = math.log((accuracy - self.guessing) / (1 - accuracy)) / self.slope - self.ability
        return min(1.0, max(0.0, found))


def fit(points: List[tuple[float, float]]) -> Curve:
    """The curve with the least squared error at (rate, accuracy); points of one rate count as their mean."""
    from scipy.optimize import least_squares  # slow to import

    by_rate: dict[float, list[float]] = {}
    for rate, accuracy in points:
        by_rate.setdefault(rate, []).append(accuracy)
    means = {rate: float(np.mean(values)) for rate, values in by_rate.items()}
    rates = np.array([rate for rate, _ in points])
    expected = np.array([means[rate] for rate, _ in points])

    def error(parameters: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        slope, ability, guessing = parameters
        found: np.ndarray[tuple[int], np.dtype[np.float64]] = (
            guessing + (1 - guessing) / (1 + np.exp(-slope * (rates + ability))) - expected
        )
        return found

    found = min((least_squares(error, start, bounds=(LOWEST, HIGHEST)) for start in STARTS), key=lambda one: one.cost)
    return Curve(*map(float, found.x))
