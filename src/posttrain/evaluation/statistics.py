"""How sure a number is: intervals, paired differences, corrections for many comparisons, effect sizes.

`[P]` are values of problems, `[S, P]` the same problems under S seeds. A difference is always b minus a.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported when they are asked for

Array = npt.NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval. A side that the data say nothing about is infinite."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_json(self) -> dict[str, float | None]:
        """The fields by name; an infinite side is None, for JSON has no infinity."""
        return {name: _finite_or_none(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Difference:
    """b minus a. `effect` is Cohen's d over problems; `test` names where `p_value` comes from."""

    interval: Interval
    p_value: float
    test: str
    effect: float
    problems: int
    seeds: int = 1

    @property
    def significant(self) -> bool:
        """p < 1 - level and the interval leaves out 0: near the border the two may disagree, and both are asked."""
        return self.p_value < 1 - self.interval.level and 0.0 not in self.interval

    def to_json(self) -> dict[str, Any]:
        """The fields by name and `significant`."""
        row = asdict(self) | {"interval": self.interval.to_json(), "effect": _finite_or_none(self.effect)}
        return row | {"significant": self.significant}


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Interval of a share, `successes` of `n` (Wilson 1927, score interval without continuity correction)."""
    if n < 1:
        raise ValueError("the share of no trials at all has no interval")
    low, high = scipy.stats.binomtest(int(successes), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / n, float(low), float(high), level)


def bootstrap_mean(
    values: npt.ArrayLike, rng: np.random.Generator, *, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Bootstrap interval of the mean of `values[P]`, corrected for small P; infinite when P is 1.

    Plain percentile intervals are too narrow for few values: drawing P - 1 of P makes the variance of the resampled
    mean unbiased (Rao & Wu 1988), and the percentiles are stretched from the normal to Student's t (Hesterberg 2015).
    Of two values the interval is Student's.
    """
    x = _checked(values, dimensions=1)
    return _bootstrap([x], rng, level, resamples)[0]


def share_interval(
    values: npt.ArrayLike, rng: np.random.Generator, *, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Interval of the mean of per-problem shares `values[P]` in [0, 1].

    Wilson where each share is 0 or 1 (one draw a problem, or all draws agree: resampling values that are all 1 would
    claim certainty), the bootstrap over problems, cut to [0, 1], otherwise.
    """
    x = _checked(values, dimensions=1)
    if _is_binary(x):
        return wilson(int(x.sum()), len(x), level=level)
    found = bootstrap_mean(x, rng, level=level, resamples=resamples)
    return Interval(found.estimate, max(found.low, 0.0), min(found.high, 1.0), level)


def hierarchical_bootstrap(
    values: npt.ArrayLike | Sequence[npt.ArrayLike],
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Interval of the mean over seeds and problems, for new seeds and new problems of the same kind.

    `values[S, P]`: seeds and problems are resampled each on their own, a drawn problem under all drawn seeds (they
    are crossed, not nested: resampling problems anew within each seed would take S*P problems for granted where there
    are P). Product resampling counts the noise of a single cell three times (Owen 2007), so draws are scaled to the
    unbiased two-way variance, and stretched to Student's t with Satterthwaite's degrees of freedom: plain percentiles
    of 3 seeds are far too narrow (of 2 the interval is Student's). Rows of unequal length are problems of each seed's
    own; their means are then resampled over seeds. With one seed the interval is over problems alone.
    """
    return _bootstrap(_rows(values), rng, level, resamples)[0]


def paired_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, rng: np.random.Generator, *, level: float = 0.95, resamples: int = RESAMPLES
) -> Difference:
    """Mean of `b[P] - a[P]` over problems that both answered, with bootstrap interval and two-sided p-value.

    The test is McNemar's exact one where all values are 0 or 1, and flips signs of differences otherwise (exact when
    2^P <= `resamples`).
    """
    x, y = _checked(a, dimensions=1), _checked(b, dimensions=1)
    if x.shape != y.shape:
        raise ValueError(f"paired values differ in number: {len(x)} and {len(y)}")
    interval = bootstrap_mean(y - x, rng, level=level, resamples=resamples)
    if _is_binary(x) and _is_binary(y):
        p_value, test = _mcnemar(x, y), "McNemar exact"
    else:
        p_value, test = _sign_flips(y - x, rng, resamples), "sign-flip permutation"
    return Difference(interval, p_value, test, cohens_d(x, y), len(x))


def of_shares(interval: Interval, problems: int, possible: tuple[float, float]) -> Interval:
    """An interval of shares (or of their differences), cut to the least and the greatest that is possible.

    Where all values are the same, resampling them would claim certainty: then what Wilson's interval leaves open of so
    many problems of which none is otherwise.
    """
    alike = interval.low == interval.high
    open_to = wilson(0, problems, level=interval.level).high if alike else 0.0
    low, high = max(interval.low - open_to, possible[0]), min(interval.high + open_to, possible[1])
    return Interval(interval.estimate, low, high, interval.level)


def paired_shares(a: npt.ArrayLike, b: npt.ArrayLike, rng: np.random.Generator, *, level: float = 0.95) -> Difference:
    """`paired_difference` of shares in [0, 1], which is certain of nothing where no problem's share has changed."""
    found = paired_difference(a, b, rng, level=level)
    return replace(found, interval=of_shares(found.interval, found.problems, (-1.0, 1.0)))


def hierarchical_difference(
    a: npt.ArrayLike | Sequence[npt.ArrayLike],
    b: npt.ArrayLike | Sequence[npt.ArrayLike],
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Difference:
    """Mean of `b - a` over seeds and problems, paired by seed and problem; shapes as `hierarchical_bootstrap`.

    The p-value is Student's t with the same standard error and degrees of freedom as the interval; with one seed it is
    that of `paired_difference`.
    """
    rows_a, rows_b = _rows(a), _rows(b)
    if [len(row) for row in rows_a] != [len(row) for row in rows_b]:
        raise ValueError("paired values differ in the number of seeds, or of problems of a seed")
    if len(rows_a) == 1:
        return paired_difference(rows_a[0], rows_b[0], rng, level=level, resamples=resamples)
    rows = [y - x for x, y in zip(rows_a, rows_b, strict=True)]
    interval, error, freedom = _bootstrap(rows, rng, level, resamples)
    crossed = _is_crossed(rows)
    x, y = (np.mean(side, axis=0) if crossed else np.concatenate(side) for side in (rows_a, rows_b))
    if error > 0:
        p_value, test = 2 * float(scipy.stats.t.sf(abs(interval.estimate) / error, freedom)), "hierarchical t"
    else:  # all differences are the same: a t-value would claim certainty even of two of them
        p_value, test = _sign_flips(y - x, rng, resamples), "sign-flip permutation"
    return Difference(interval, p_value, test, cohens_d(x, y), len(x), len(rows))


def holm(p_values: npt.ArrayLike) -> Array:
    """Adjusted p-values `[M]` in the order given; those under alpha hold together at error rate alpha (Holm 1979)."""
    p = _checked(p_values, dimensions=1)
    if (p < 0).any() or (p > 1).any():
        raise ValueError(f"p-values lie between 0 and 1, found {p.min()} to {p.max()}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def cohens_d(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Difference of means, b minus a, in pooled standard deviations (Cohen 1988); infinite where nothing spreads."""
    x, y = _checked(a, dimensions=1), _checked(b, dimensions=1)
    gap = float(y.mean() - x.mean())
    squares = ((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()
    spread = math.sqrt(squares / max(len(x) + len(y) - 2, 1))
    if spread == 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / spread


def in_words(
    difference: Difference,
    names: tuple[str, str] = ("A", "B"),
    *,
    scale: float = 100.0,
    unit: str = "points",
    digits: int = 1,
) -> str:
    """The finding as a plain sentence; `names` are a's and b's, values are multiplied by `scale` and called `unit`."""
    a, b = names
    interval = difference.interval
    estimate, low, high = (scale * value for value in (interval.estimate, interval.low, interval.high))
    if estimate < 0 and difference.significant:
        low, high = -high, -low
    unit = f" {unit}" if unit else ""
    span = f"{100 * interval.level:g} % interval {low:.{digits}f} to {high:.{digits}f}"
    if difference.significant:
        return f"{b} is {abs(estimate):.{digits}f}{unit} {'better' if estimate > 0 else 'worse'} than {a} ({span})"
    finding = f"{b} minus {a}: {estimate:+.{digits}f}{unit}, {span}, p = {difference.p_value:.2g}"
    return f"no significant difference between {a} and {b} ({finding})"


def _bootstrap(
    rows: list[Array], rng: np.random.Generator, level: float, resamples: int
) -> tuple[Interval, float, float]:
    """Interval of the mean, its standard error and the degrees of freedom of that error."""
    if len(rows) > 1 and not _is_crossed(rows):
        rows = [np.array([row.mean() for row in rows])]  # resample the top level only (Davison & Hinkley 1997, 3.8)
    table = np.stack(rows)
    if 1 in table.shape:
        table = table.reshape(1, -1)
    mean = float(table.mean())
    if table.size == 1:
        return Interval(mean, -math.inf, math.inf, level), math.inf, 0.0
    if np.ptp(table) <= 1e-12 * np.abs(table).max():
        return Interval(mean, mean, mean, level), 0.0, math.inf
    error, drawn_error, freedom = _one_way_error(table[0]) if len(table) == 1 else _two_way_error(table)
    tail = (1 + level) / 2
    students = float(scipy.stats.t.ppf(tail, freedom))
    if 2 in table.shape:  # drawing one of two values over and over says nothing of their tails
        return Interval(mean, mean - students * error, mean + students * error, level), error, freedom
    drawn = np.quantile(_resampled_means(table, rng, resamples), [(1 - level) / 2, tail])
    stretch = error / drawn_error * (students / float(scipy.stats.norm.ppf(tail)))
    low, high = mean + stretch * (drawn - mean)
    return Interval(mean, float(low), float(high), level), error, freedom


def _one_way_error(values: Array) -> tuple[float, float, float]:
    """Standard error of the mean of `values[P]`, that of its resampled means, degrees of freedom."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return error, error, len(values) - 1


def _two_way_error(table: Array) -> tuple[float, float, float]:
    """As `_one_way_error` for `table[S, P]` with random rows and columns (mean squares of the two-way layout)."""
    seeds, problems = table.shape
    mean = table.mean()
    row, column = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    rest = table - mean - row[:, None] - column
    by_seed = problems * (row**2).sum() / (seeds - 1)
    by_problem = seeds * (column**2).sum() / (problems - 1)
    by_cell = (rest**2).sum() / ((seeds - 1) * (problems - 1))
    # A mean square under the noise's is chance: never report less than the larger of the two alone.
    total = max(by_seed + by_problem - by_cell, by_seed, by_problem)
    freedom = total**2 / (
        by_seed**2 / (seeds - 1) + by_problem**2 / (problems - 1) + by_cell**2 / ((seeds - 1) * (problems - 1))
    )
    drawn = by_seed + by_problem + by_cell
    return math.sqrt(total / table.size), math.sqrt(drawn / table.size), float(freedom)


def _resampled_means(table: Array, rng: np.random.Generator, resamples: int) -> Array:
    """Means `[resamples]` of `table[S, P]` over S - 1 drawn rows (all of one) and P - 1 drawn columns."""
    seeds, problems = table.shape
    means = np.empty(resamples)
    block = max(1, 4_000_000 // problems)  # 32 MB at a time
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        columns = rng.integers(problems, size=(count, problems - 1))
        if seeds == 1:
            means[start : start + count] = table[0][columns].mean(axis=1)
        else:
            weights = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=count) / (seeds - 1)
            means[start : start + count] = np.take_along_axis(weights @ table, columns, axis=1).mean(axis=1)
    return means


def _mcnemar(a: Array, b: Array) -> float:
    gained, lost = int((b > a).sum()), int((b < a).sum())
    return float(scipy.stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _sign_flips(differences: Array, rng: np.random.Generator, resamples: int) -> float:
    moved = differences[differences != 0]  # flipping a zero changes nothing: without them more cases are exact
    if len(moved) < 2:
        return 1.0  # both signs of one are as extreme
    found = scipy.stats.permutation_test(
        (moved,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(moved)),
        rng=rng,
    )
    return float(found.pvalue)


def _rows(values: Any) -> list[Array]:
    rows = [_checked(row, dimensions=1) for row in values]
    if not rows:
        raise ValueError("there are no seeds")
    return rows


def _is_crossed(rows: list[Array]) -> bool:
    return len({len(row) for row in rows}) == 1


def _is_binary(values: Array) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _checked(values: npt.ArrayLike, dimensions: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions or not array.size:
        raise ValueError(f"expected values in {dimensions} dimension(s), at least one; found shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite")
    return array


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
