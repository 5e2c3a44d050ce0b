"""How often verifiers are wrong: their verdicts on answers that were labelled by hand (`rewards/labelled/*.jsonl`).

A row with `gold` (and `meta`) says what the rows below it are compared with; a row with `text` is an answer, `right` or
not to a careful reader who knows the question, and of a `kind`. A right answer in another form than the task asks for
is labelled right: that it is lost is one of the things to know. The sets are hard on purpose: their rates compare
verifiers and versions of them, and are not those of a model's answers.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import numpy as np

from posttrain.data import Sample, user
from posttrain.errors import UserError, nearest
from posttrain.evaluation.statistics import Interval, wilson
from posttrain.rewards import Attempt, Score, Verify
from posttrain.rewards.program import verify_program
from posttrain.rewards.shaping import tags
from posttrain.rewards.smt import verify_smt
from posttrain.rewards.sql import verify_sql
from posttrain.tasks.answers import verify_exact, verify_number
from posttrain.tasks.chains import Chains
from posttrain.tasks.countdown import CountdownTask
from posttrain.tasks.general_points import GeneralPointsTask
from posttrain.tasks.logic import Logic
from posttrain.tasks.multiplication import Multiplication
from posttrain.tasks.sokoban import SokobanTask
from posttrain.tasks.tool_calls import ToolCallsTask


def _tags(sample: Sample, text: str) -> Score:
    """The reward of that name, whose verdict hangs on the text alone."""
    nothing = np.zeros(0, np.float32)
    score = tags(Attempt(sample, text, nothing.astype(np.int32), nothing, "stop"), order=["think", "answer"])
    return score if isinstance(score, Score) else Score(score)


VERIFIERS: Mapping[str, Verify] = {
    "number": verify_number,
    "exact": verify_exact,
    "chains": Chains().verify,
    "multiplication": Multiplication().verify,
    "logic": Logic().verify,
    "countdown": CountdownTask().verify,
    "general_points": GeneralPointsTask().verify,
    "sokoban": SokobanTask().verify,
    "tool_calls": ToolCallsTask().verify,
    "tags": _tags,
    "program": partial(verify_program, time_limit=1.0),
    "sql": partial(verify_sql, time_limit=1.0),
    "smt": verify_smt,
}
"""What is measured, by the name of its labelled set."""


@dataclass(frozen=True)
class Labelled:
    """An answer with its label."""

    sample: Sample
    text: str
    right: bool
    kind: str


@dataclass(frozen=True)
class Judged:
    """A labelled answer and the verifier's verdict; `reason` is the verifier's own."""

    answer: Labelled
    accepted: bool
    reason: str

    @property
    def error(self) -> str | None:
        """ "false negative" (right, refused), "false positive" (wrong, accepted), or None."""
        if self.accepted == self.answer.right:
            return None
        return "false negative" if self.answer.right else "false positive"


@dataclass(frozen=True)
class Judgement:
    """All verdicts of one verifier."""

    name: str
    judged: tuple[Judged, ...]

    @property
    def misjudged(self) -> list[Judged]:
        """Those that differ from the label."""
        return [one for one in self.judged if one.error is not None]

    def rate(self, right: bool) -> Interval:
        """Share of the right (wrong) answers that are misjudged, with Wilson's 95 % interval."""
        errors = [one.error is not None for one in self.judged if one.answer.right == right]
        return wilson(sum(errors), len(errors))

    def to_json(self) -> dict[str, Any]:
        """Counts and rates."""
        row: dict[str, Any] = {"verifier": self.name}
        for right, answers, errors in ((True, "right", "false_negatives"), (False, "wrong", "false_positives")):
            rate = self.rate(right)
            row[answers] = sum(one.answer.right == right for one in self.judged)
            row[errors] = sum(one.answer.right == right for one in self.misjudged)
            row[f"{errors}_rate"], row[f"{errors}_interval"] = rate.estimate, [rate.low, rate.high]
        return row


def labelled(name: str) -> Iterator[Labelled]:
    """The labelled answers of a verifier. Raises `UserError` for a name that has none."""
    if name not in VERIFIERS:
        raise UserError(f"no verifier '{name}' has labelled answers: {nearest(name, VERIFIERS)}")
    file = resources.files("posttrain") / "rewards" / "labelled" / f"{name}.jsonl"
    sample = Sample(())
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "gold" in row:
            sample = Sample((user(name),), answer=row["gold"], meta=row.get("meta", {}))
        else:
            yield Labelled(sample, row["text"], row["right"], row["kind"])


def judge(name: str) -> Judgement:
    """Ask a verifier about all its labelled answers."""
    judged = []
    for answer in labelled(name):
        score = VERIFIERS[name](answer.sample, answer.text)
        if score.error is not None:
            raise UserError(f"verifier '{name}' gives no verdict of {answer.text!r}: {score.error}")
        judged.append(Judged(answer, score.right, str(score.info.get("reason", ""))))
    return Judgement(name, tuple(judged))
