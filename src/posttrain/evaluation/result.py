"""What an evaluation leaves behind: answers, problems, numbers; and one result against another."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np

from posttrain.errors import UserError
from posttrain.evaluation.statistics import Difference, Interval, in_words, paired_difference, paired_shares
from posttrain.generation import Sampling, ThinkingRules

Measure = Literal["accuracy", "value"]


@dataclass(frozen=True)
class Answer:
    """One drawn answer and its score: a line of samples/<stage>.jsonl.

    `value` is None where `error` says why no score could be given, and where there was nothing to score by. `tokens`
    counts what was drawn, `logprob` sums its log-probs under the untempered policy (nats). `draw` is its number among
    its problem's; `step` the training step.
    `token_ids`: what was drawn, its end token included; not written down.
    """

    sample_id: str
    task: str
    prompt: str
    expected: str | None
    text: str
    value: float | None
    parts: Mapping[str, float]
    info: Mapping[str, Any]
    error: str | None
    finish_reason: str
    tokens: int
    logprob: float
    draw: int
    step: int | None = None
    token_ids: tuple[int, ...] = ()

    @property
    def extracted(self) -> str | None:
        """What the verifier read as the final answer (`info["extracted"]`), as text."""
        found = self.info.get("extracted")
        return None if found is None else str(found)

    @property
    def canonical(self) -> str | None:
        """The same in one spelling, by which answers are counted (`info["canonical"]`, where it is another)."""
        return str(self.info["canonical"]) if "canonical" in self.info else self.extracted

    def to_json(self) -> dict[str, Any]:
        """The fields by name, in plain JSON types, without the tokens."""
        row: dict[str, Any] = _plain({f.name: getattr(self, f.name) for f in fields(self) if f.name != "token_ids"})
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "Answer":
        """Inverse of `to_json`; keys that are no fields are passed over."""
        return Answer(**{f.name: row[f.name] for f in fields(Answer) if f.name in row})


@dataclass(frozen=True)
class Problem:
    """What one problem's scored draws came to. `value` is their mean, `right` how many were right."""

    sample_id: str
    task: str
    draws: int
    right: int
    value: float


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers of one evaluation. `metrics` are described at `summarise`; `answers` is empty after `from_json`."""

    name: str
    n: int
    sampling: Sampling
    metrics: Mapping[str, float]
    problems: tuple[Problem, ...]
    level: float = 0.95
    answers: tuple[Answer, ...] = field(default=(), repr=False, compare=False)

    @property
    def accuracy(self) -> Interval:
        """Share of right answers, with its interval over problems."""
        m = self.metrics
        return Interval(m["accuracy"], m["accuracy_low"], m["accuracy_high"], self.level)

    def per_problem(self, measure: Measure = "accuracy") -> dict[str, float]:
        """Sample id -> share of right draws ("accuracy") or mean value ("value"), for paired comparisons."""
        return {p.sample_id: p.value if measure == "value" else p.right / p.draws for p in self.problems}

    def to_json(self) -> dict[str, Any]:
        """All but the answers, in plain JSON types: enough to redo every comparison."""
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "answers"}
        row |= {"sampling": asdict(self.sampling), "problems": [asdict(p) for p in self.problems]}
        plain: dict[str, Any] = _plain(row)
        return plain

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "EvaluationResult":
        """Inverse of `to_json`."""
        drawn: dict[str, Any] = dict(row["sampling"])
        drawn |= {key: tuple(value) for key, value in drawn.items() if isinstance(value, list)}
        if drawn.get("thinking") is not None:
            drawn["thinking"] = ThinkingRules(**drawn["thinking"])
        problems = tuple(Problem(**problem) for problem in row["problems"])
        return EvaluationResult(**{**row, "sampling": Sampling(**drawn), "problems": problems})


@dataclass(frozen=True)
class Comparison:
    """b against a, paired by problem. `caveats`: what the two evaluations did not have in common."""

    difference: Difference
    sentence: str
    caveats: tuple[str, ...] = ()


def compare_results(
    a: EvaluationResult,
    b: EvaluationResult,
    rng: np.random.Generator,
    *,
    names: tuple[str, str] = ("A", "B"),
    measure: Measure = "accuracy",
    level: float = 0.95,
) -> Comparison:
    """b minus a over the problems that both have scored, with a plain sentence.

    Raises `UserError` where they share no problem.
    """
    left, right = a.per_problem(measure), b.per_problem(measure)
    shared = [key for key in left if key in right]
    if not shared:
        raise UserError(
            f"'{a.name}' and '{b.name}' have no problem in common ({len(left)} and {len(right)} of their own): "
            "evaluate both on the same samples"
        )
    points = measure == "accuracy"
    compared = paired_shares if points else paired_difference
    difference = compared([left[key] for key in shared], [right[key] for key in shared], rng, level=level)
    sentence = in_words(difference, names) if points else in_words(difference, names, scale=1.0, unit="", digits=3)
    caveats = []
    if apart := len(left) + len(right) - 2 * len(shared):
        caveats.append(f"{apart} problems that only one of them has scored are left out")
    if a.n != b.n:
        caveats.append(f"draws of each problem differ: {a.n} and {b.n}")
    others = asdict(b.sampling)
    for key, value in asdict(a.sampling).items():
        if key != "seed" and value != (other := others[key]):
            caveats.append(f"sampling differs in {key}: {value} and {other}")
    return Comparison(difference, sentence, tuple(caveats))


def _plain(row: Mapping[str, Any]) -> Any:
    """`row` as JSON reads it back; numpy's numbers and arrays become plain ones, what JSON does not know its text."""
    return json.loads(json.dumps(row, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value)))
