"""Job screening, made up: a job's skills and a candidate's, to be answered with a status and a score in JSON."""

import json
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from posttrain.data import Sample
from posttrain.rewards import Score
from posttrain.rewards.screening import SELECTED, is_selected, read_decision
from posttrain.tasks.generated import GeneratedTask, Part
from posttrain.tasks.task import Difficulty, tasks

SKILLS = ("AI", "BI", "C", "DB", "Go", "JS", "ML", "OS", "QA", "R", "TS", "UX")
REQUIRED: dict[Difficulty, int] = {"in": 4, "harder": 6}
SELECTED_FROM = 60
"""The score from which a candidate is selected."""
EXPERIENCE = {75: "Senior engineer, 10 years", 50: "Mid-level engineer, 5 years", 0: "Junior engineer, 1 year"}
"""What is said of a candidate's experience, from a score on."""
_LAX = ("SELECT", "APPROVE", "CONSIDER", "YES")


@dataclass(frozen=True)
class Application:
    """A job's skills, a candidate's, and the annotation: score in percent, status, experience."""

    job: tuple[str, ...]
    candidate: tuple[str, ...]
    score: int
    selected: bool
    experience: str


@tasks.register("screening")
class Screening(GeneratedTask[Application]):
    """Invented applications: no person, no real job, and nothing learned here says anything about hiring.

    The score is the share of the job's skills that the candidate has, in percent, give or take 10; from 60 on a
    candidate is selected. In a share `noise` of the annotations the status is the other one, and in a fifth the
    experience, which the question does not show, is another than the score suggests. Jobs ask for 4 skills (6 in
    `harder`) of 12; every share that a candidate has of them is equally likely. `openings`: so many jobs in all, the
    same for every seed; None: any.

    An answer is right where its status is; parts: `rejected`, `recall` (of candidates to be selected), `precision` (of
    those that were), `score_error`. `lax`: a status that contains SELECT, APPROVE, CONSIDER or YES selects, as in the
    authors' evaluation (by which "NOT SELECTED" does too). Modelled on the data of arXiv 2511.16073.
    """

    name = "screening"
    styles = ("json",)

    def __init__(
        self,
        *,
        noise: Annotated[float, Field(ge=0, le=0.5)] = 0.1,
        openings: PositiveInt | None = None,
        lax: bool = False,
        part: Part = "any",
    ) -> None:
        super().__init__(part=part)
        self.noise, self.openings, self.lax = noise, openings, lax

    def problem(self, rng: Random, difficulty: Difficulty) -> Application:
        """Draw how many skills are met, then which."""
        count = REQUIRED[difficulty]
        job = rng.sample(SKILLS, count)
        if self.openings is not None:
            job = Random(f"opening {rng.randrange(self.openings)} {difficulty}").sample(SKILLS, count)
        met = rng.randint(0, count)
        others = [skill for skill in SKILLS if skill not in job]
        candidate = rng.sample(job, met) + rng.sample(others, rng.randint(max(0, 1 - met), max(1, count - met)))
        rng.shuffle(candidate)
        score = max(0, min(100, round(100 * met / count) + rng.choice((-10, -5, 0, 5, 10))))
        selected = (score >= SELECTED_FROM) != (rng.random() < self.noise)
        suggested = next(text for least, text in EXPERIENCE.items() if score >= least)
        experience = rng.choice(list(EXPERIENCE.values())) if rng.random() < 0.2 else suggested
        return Application(tuple(job), tuple(candidate), score, selected, experience)

    def prompt(self, problem: Application) -> str:
        """Both lists; the annotation stays hidden."""
        return f"Job: {', '.join(problem.job)}. Has: {', '.join(problem.candidate)}."

    def demonstration(self, problem: Application, style: str) -> str:
        """The annotation as JSON."""
        return json.dumps({"score": problem.score, "status": self.answer(problem)})

    def answer(self, problem: Application) -> str:
        """The annotated status."""
        return "SELECTED" if problem.selected else "REJECTED"

    def details(self, problem: Application) -> dict[str, Any]:
        """What the reward `screening` reads."""
        return {
            "job_skills": ", ".join(problem.job),
            "candidate_skills": ", ".join(problem.candidate),
            "score": problem.score,
            "experience": problem.experience,
        }

    def verify(self, sample: Sample, answer: str) -> Score:
        """1 where the status is the annotated one; an answer that is no JSON is wrong, and rejects."""
        if sample.answer is None:
            return Score(0.0, error=f"sample {sample.id} has no status to compare with")
        decision, good = read_decision(answer), is_selected(sample.answer)
        selects = any(mark in decision.status for mark in _LAX) if self.lax else decision.selects
        known = self.lax or decision.status in SELECTED | {"REJECTED"}
        right = float(decision.readable and known and selects == good)
        parts = {"correct": right, "format": float(decision.readable), "rejected": float(not selects)}
        parts |= {"recall": float(selects)} if good else {}
        parts |= {"precision": float(good)} if selects else {}
        if (score := sample.meta.get("score")) is not None:
            parts["score_error"] = abs(decision.score - float(score))
        reason = "malformed" if not decision.readable else "found" if right else "wrong"
        extracted = decision.status if decision.readable else None
        return Score(right, parts, {"extracted": extracted, "reason": reason})
