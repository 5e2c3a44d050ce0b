import json

import pytest

from posttrain.evaluation import Answer, summarise
from posttrain.generation import Sampling
from posttrain.tasks.screening import EXPERIENCE, SELECTED_FROM, Screening


def test_applications_follow_their_rule_but_for_the_noise() -> None:
    samples = Screening().samples(2000, 0)
    flipped = other = 0
    for sample in samples:
        job, candidate = (
            {s.strip() for s in str(sample.meta[k]).split(",")} for k in ("job_skills", "candidate_skills")
        )
        assert len(job) == 4
        assert candidate
        assert sample.prompt_text == f"Job: {sample.meta['job_skills']}. Has: {sample.meta['candidate_skills']}."
        assert abs(sample.meta["score"] - 25 * len(job & candidate)) <= 10
        assert 0 <= sample.meta["score"] <= 100
        flipped += (sample.meta["score"] >= SELECTED_FROM) != (sample.answer == "SELECTED")
        other += (
            next(t for least, t in EXPERIENCE.items() if sample.meta["score"] >= least) != sample.meta["experience"]
        )
        assert json.loads(sample.response_text) == {"score": sample.meta["score"], "status": sample.answer}
    assert 0.07 < flipped / 2000 < 0.13
    assert 0.1 < other / 2000 < 0.17
    assert 0.35 < sum(sample.answer == "SELECTED" for sample in samples) / 2000 < 0.5
    assert not any(
        (s.meta["score"] >= SELECTED_FROM) != (s.answer == "SELECTED") for s in Screening(noise=0).samples(500, 0)
    )


def test_a_few_openings_are_the_same_for_every_seed() -> None:
    jobs = [{s.meta["job_skills"] for s in Screening(openings=2).samples(100, seed)} for seed in (0, 1)]
    assert jobs[0] == jobs[1]
    assert len(jobs[0]) == 2


def test_parts_are_disjoint_and_samples_a_function_of_the_seed() -> None:
    train, test = (Screening(part=part).samples(300, 1) for part in ("train", "test"))
    assert not {s.prompt_text for s in train} & {s.prompt_text for s in test}
    assert train == Screening(part="train").samples(300, 1)
    assert all(str(s.meta["job_skills"]).count(",") == 5 for s in Screening().samples(20, 0, difficulty="harder"))


@pytest.mark.parametrize(
    ("text", "right", "readable", "rejects"),
    [
        ('{"score": 80, "status": "SELECTED"}', 1, 1, 0),
        ('Sure: {"score": 80, "status": "approve"} as said', 1, 1, 0),
        ('{"score": 80, "status": "REJECTED"}', 0, 1, 1),
        ('{"score": 80, "status": "MAYBE"}', 0, 1, 1),
        ('{"score": 80, "status": "NOT SELECTED"}', 0, 1, 1),
        ("SELECTED", 0, 0, 1),
    ],
)
def test_answers_are_read_as_json(text: str, right: float, readable: float, rejects: float) -> None:
    sample = next(s for s in Screening().samples(50, 0) if s.answer == "SELECTED")
    score = Screening().verify(sample, text)
    found = (score.value, score.parts["format"], score.parts["rejected"], score.parts["recall"])
    assert found == (right, readable, rejects, 1 - rejects)
    assert ("precision" in score.parts) == (not rejects)


def test_the_lax_reading_of_the_authors_evaluation_takes_a_refusal_for_a_selection() -> None:
    sample = next(s for s in Screening().samples(50, 0) if s.answer == "SELECTED")
    assert Screening(lax=True).verify(sample, '{"score": 9, "status": "NOT SELECTED"}').value == 1
    assert Screening(lax=True).verify(sample, '{"score": 9, "status": "no"}').value == 0


@pytest.mark.parametrize(
    ("fp", "precision", "accuracy", "f1"), [(0, 1.0, 0.913462, 0.920354), (2, 0.962963, 0.894231, None)]
)
def test_golden_numbers_of_the_confusion_table(fp: int, precision: float, accuracy: float, f1: float | None) -> None:
    task = Screening()
    good = next(s for s in task.samples(50, 0) if s.answer == "SELECTED")
    bad = next(s for s in task.samples(50, 0) if s.answer == "REJECTED")
    said = (
        [(good, "SELECTED")] * 52
        + [(good, "REJECTED")] * 9
        + [(bad, "SELECTED")] * fp
        + [(bad, "REJECTED")] * (43 - fp)
    )
    answers = []
    for index, (sample, status) in enumerate(said):
        score = task.verify(sample, json.dumps({"score": 50, "status": status}))
        answers.append(
            Answer(
                str(index),
                "screening",
                "",
                sample.answer,
                "",
                score.value,
                score.parts,
                score.info,
                None,
                "stop",
                9,
                0.0,
                0,
            )
        )
    metrics = summarise(answers, n=1, sampling=Sampling(temperature=0.0)).metrics
    assert metrics["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert metrics["precision"] == pytest.approx(precision, abs=1e-6)
    assert metrics["recall"] == pytest.approx(0.852459, abs=1e-6)
    assert metrics["rejected"] == pytest.approx((9 + 43 - fp) / 104)
    if f1 is not None:
        mean = 2 * metrics["precision"] * metrics["recall"] / (metrics["precision"] + metrics["recall"])
        assert mean == pytest.approx(f1, abs=1e-6)
