"""What a comparison leaves behind (`comparison.json`): complete enough to redo every number of its page.

Shares (accuracies) lie between 0 and 1, seconds are wall-clock, a side of an interval that nothing is known about is
None. A difference is always `arm` minus `minus`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from posttrain.errors import UserError

FORMAT = 1
FILE = "comparison.json"

Family = Literal["first", "pairs", "base"]
"""Which comparisons a difference is corrected with: arms with the first one, all pairs of arms, arms with the start."""

Verdict = Literal["supported", "not supported", "inconclusive"]


@dataclass(frozen=True)
class Measure:
    """A number that arms are compared by: `name` is STAGE.METRIC.

    `unit` is what a *difference* is said in: "points" (100 times that of shares), "nats", "s", "tokens", "steps" or "".
    `has_problems`: a mean over problems, whose shares are in every run's `shares`.
    """

    name: str
    stage: str
    metric: str
    label: str
    unit: str
    larger_is_better: bool | None
    has_problems: bool


@dataclass(frozen=True)
class ArmRun:
    """One seed of an arm.

    `values`: measure -> number. `shares`: evaluate stage -> share right of each problem in the order of the result's
    `problems[stage]`, None for one that this run was not asked. `curves`: train stage -> column -> numbers: `step`,
    `tokens` (trained, so far), `input_tokens`, `seconds`, `loss` and whatever else was logged, thinned to means of
    equal stretches of steps. `watched`: train stage -> the same for what was evaluated while it trained.
    `peak_memory`: bytes, where the run says so.
    """

    seed: int
    folder: str
    seconds: float
    values: dict[str, float]
    shares: dict[str, list[float | None]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    watched: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    peak_memory: float | None = None


@dataclass(frozen=True)
class ArmResult:
    """An arm: its recipe, the overrides it was given (`set`), what tuning chose, its steps, its finished runs."""

    name: str
    recipe: str
    description: str
    set: dict[str, Any]
    tuned: dict[str, Any]
    steps: dict[str, int]
    runs: list[ArmRun]


@dataclass(frozen=True)
class Estimate:
    """Mean of a measure over an arm's seeds (and problems) with its 95 % interval; `spread`: standard deviation of
    the seeds' values, None for one seed."""

    metric: str
    arm: str
    mean: float
    low: float | None
    high: float | None
    spread: float | None
    seeds: int


@dataclass(frozen=True)
class Contrast:
    """`arm` minus `minus` in one measure, paired by seed and problem.

    `effect`: Cohen's d over problems (over seeds where there are none); None where nothing spreads. `p_adjusted`: after
    Holm over the contrasts of the same measure and family; `significant` goes by it and by the interval.
    """

    metric: str
    arm: str
    minus: str
    family: Family
    estimate: float
    low: float | None
    high: float | None
    p_value: float
    p_adjusted: float
    test: str
    effect: float | None
    problems: int
    seeds: int
    significant: bool
    sentence: str


@dataclass(frozen=True)
class Trial:
    """One run of the tuning: what was set, what `tune_on` came to, whether it was chosen for its arm."""

    arm: str
    set: dict[str, Any]
    seed: int
    value: float
    chosen: bool


@dataclass(frozen=True)
class Failure:
    """A run that did not finish: why, and the last lines of what it said."""

    arm: str
    seed: int
    folder: str
    reason: str
    output: list[str]


@dataclass(frozen=True)
class BudgetResult:
    """What every arm could spend: `kind` "recipe" (what the recipes say), "steps", "tokens" or "seconds".

    `pilot`: arm -> seconds of a step, as a short pilot found (for "seconds" alone).
    """

    kind: Literal["recipe", "steps", "tokens", "seconds"]
    amount: float | None
    pilot: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimResult:
    """A claim and what came out. `arms`: arm -> every seed's number; `effect` is the value or difference claimed, with
    `over` the share of the gap, with `than` the difference of two differences."""

    text: str
    metric: str
    of: str
    minus: str | None
    at_least: float | None
    at_most: float | None
    seeds: list[int]
    arms: dict[str, list[float]]
    effect: float | None
    interval: list[float | None]
    verdict: Verdict
    sentence: str
    over: str | None = None
    than: tuple[str, str] | None = None


@dataclass(frozen=True)
class ComparisonResult:
    """All of it. `arms` without the start, which is `base` (None where its evaluation failed or there is none).

    `problems`: evaluate stage -> ids of its problems. `tune_on` is None where nothing was tuned.
    `notes`: what a reader has to know before trusting the numbers.
    """

    name: str
    description: str
    paper: int | None
    seeds: list[int]
    budget: BudgetResult
    measures: list[Measure]
    problems: dict[str, list[str]]
    arms: list[ArmResult]
    base: ArmResult | None
    estimates: list[Estimate]
    contrasts: list[Contrast]
    sentences: list[str]
    claims: list[ClaimResult]
    tune_on: str | None
    trials: list[Trial]
    failures: list[Failure]
    notes: list[str]
    spec: dict[str, Any]
    created: str
    seconds: float
    jobs: int
    level: float
    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    git_commit: str | None
    format: int = FORMAT

    def measure(self, name: str) -> Measure:
        """The measure of that name."""
        return next(measure for measure in self.measures if measure.name == name)

    def estimate(self, metric: str, arm: str) -> Estimate | None:
        """What an arm came to; None where it has no such number."""
        return next((found for found in self.estimates if (found.metric, found.arm) == (metric, arm)), None)

    def contrasts_of(self, metric: str, family: Family = "first") -> list[Contrast]:
        """The differences of one measure and family."""
        return [found for found in self.contrasts if (found.metric, found.family) == (metric, family)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; numbers that JSON does not know are None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def from_json(content: Mapping[str, Any], where: str = FILE) -> ComparisonResult:
    """Inverse of `to_json`. Raises `UserError` for what is no comparison of this version."""
    try:
        return TypeAdapter(ComparisonResult).validate_python(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"'{where}' is no comparison of this version ({place}: {first['msg']}): compare again, and finished runs "
            "are kept"
        ) from None


def read_result(folder: Path) -> ComparisonResult:
    """The result in a comparison's folder. Raises `UserError` where there is none."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"'{folder}' holds no {FILE}: give the folder of a finished comparison (runs/compare/NAME)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"'{path}' is damaged; compare again: finished runs are kept") from None
    return from_json(content, str(path))


def write_result(result: ComparisonResult, folder: Path) -> Path:
    """Write `comparison.json`, whole or not at all."""
    path = folder / FILE
    partial = path.with_name(FILE + ".partial")
    folder.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(result.to_json(), ensure_ascii=False), encoding="utf-8")
    partial.replace(path)
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
