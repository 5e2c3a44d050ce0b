"""The reward of job screening: status, score, skills and experience, with penalties that are not symmetric."""

import json
import re
from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import reward
from posttrain.rewards.score import Score

Weight = Annotated[float, Field(ge=0)]
SELECTED = frozenset({"APPROVE", "CONSIDER", "STRONGLY_CONSIDER", "SELECTED"})


@dataclass(frozen=True)
class Decision:
    """What an answer decided. `readable`: it was JSON of the right kind; else it is a rejection with score 0."""

    score: int = 0
    status: str = "REJECTED"
    readable: bool = False

    @property
    def selects(self) -> bool:
        """Does it take the candidate?"""
        return self.status in SELECTED


def read_decision(text: str) -> Decision:
    """The JSON from the first `{` to the last `}`; what cannot be read rejects with score 0, as in the authors' code.

    A score may be a number (cut to a whole one) or its text; `status` is compared in capitals.
    """
    try:
        found = json.loads(text[text.index("{") : text.rindex("}") + 1])
        return Decision(int(found.get("score", 0)), str(found.get("status", "REJECTED")).upper(), True)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return Decision()


def is_selected(gold: str | None) -> bool:
    """Does the annotation take the candidate? Everything that is none of four words rejects."""
    return str(gold).upper() in SELECTED


@reward("screening")
def screening(
    attempt: Attempt,
    *,
    missed: float = -2.0,
    wrongly_selected: float = -1.0,
    weights: tuple[Weight, Weight, Weight, Weight] = (0.4, 0.2, 0.2, 0.2),
    years: Literal["substring", "parsed"] = "substring",
    malformed: float = 0.0,
) -> Score:
    """Four rules, each of which is a part: R = Σ w_k c_k / Σ w_k. arXiv 2511.16073, from the authors' code.

    - `status`: 2 for a rightly selected candidate, 0 for a rightly rejected one, `missed` for a good one rejected,
      `wrongly_selected` for a bad one selected and for any other word. The authors' first try: -5 and -2.
    - `score`: max(-1, 1 - |s - g| / 50); 0 without a right score g.
    - `skills`: 1, 0 or -1, as three quarters or two fifths of the job's skills are the candidate's. It depends on the
      question alone: among answers to one question it changes no advantage.
    - `experience`: whether the score suits the years, which are read off the annotation: `substring` as the authors do
      ("15 years" has a 5, and is 5), `parsed` as a number before "years".

    The sample: `answer` is its status, its `meta` has job_skills, candidate_skills, experience and perhaps score. JSON
    that cannot be read counts as a rejection with score 0, which is hardly worse than a right answer where a candidate
    is to be rejected: `malformed` is added to it. (The authors' code makes every exception 0; here it is an error.)
    """
    meta, decision = attempt.sample.meta, read_decision(attempt.text)
    worked = years_by_substring if years == "substring" else years_by_number
    parts = {
        "status": _status(decision, is_selected(attempt.sample.answer), missed, wrongly_selected),
        "score": _closeness(decision.score, meta.get("score")),
        "skills": _overlap(_listed(meta["job_skills"]), _listed(meta["candidate_skills"])),
        "experience": suits(decision.score, worked(str(meta["experience"]))),
    }
    value = sum(w * c for w, c in zip(weights, parts.values(), strict=True)) / sum(weights)
    return Score(
        value if decision.readable else value + malformed,
        parts,
        {"extracted": decision.status if decision.readable else None},
    )


def _status(decision: Decision, good: bool, missed: float, wrongly_selected: float) -> float:
    if decision.selects:
        return 2.0 if good else wrongly_selected
    if decision.status == "REJECTED":
        return missed if good else 0.0
    return wrongly_selected


def _closeness(score: int, right: Any) -> float:
    return 0.0 if right is None else max(-1.0, 1 - abs(score - float(right)) / 50)


def _listed(skills: str | List[str]) -> list[str]:
    found = skills.split(",") if isinstance(skills, str) else skills
    return [skill.strip().lower() for skill in found if skill.strip()]


def _overlap(job: List[str], candidate: List[str]) -> float:
    """Of the job's skills as they are listed, also twice; as the authors count them."""
    if not job or not candidate:
        return -1.0
    share = len(set(job) & set(candidate)) / len(job)
    return 1.0 if share >= 0.75 else 0.0 if share >= 0.4 else -1.0


def suits(score: int, years: int) -> float:
    """1 where a score suits the years of experience, -1 where it does not, 0 in between; the first rule that fires."""
    if (years >= 7 and score >= 75) or (3 <= years <= 6 and 50 <= score < 80) or (years <= 2 and score < 50):
        return 1.0
    return -1.0 if (score > 85 and years <= 2) or (score < 40 and years >= 5) else 0.0


_SUBSTRINGS: Mapping[int, tuple[str, ...]] = {10: ("10", "senior"), 5: ("5", "mid"), 3: ("3",), 1: ("1", "junior")}
_WORDS: Mapping[int, str] = {10: "senior", 5: "mid", 1: "junior"}


def years_by_substring(text: str) -> int:
    """Years as the authors read them: the first of a few substrings that occurs, anywhere in the text."""
    lowered = text.lower()
    return next((years for years, marks in _SUBSTRINGS.items() if any(mark in lowered for mark in marks)), 0)


def years_by_number(text: str) -> int:
    """The most years that are written as a number before "years", else by the words senior, mid and junior."""
    lowered = text.lower()
    if numbers := re.findall(r"(\d+)\s*\+?\s*-?(?:years?|yrs?)\b", lowered):
        return max(map(int, numbers))
    return next((years for years, word in _WORDS.items() if re.search(rf"\b{word}\b", lowered)), 0)
