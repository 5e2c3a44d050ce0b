import json
import math
from dataclasses import replace

import numpy as np
import pytest

from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.evaluation import Answer, EvaluationResult, answer_of, compare_results, summarise
from posttrain.generation import Completion, Sampling
from posttrain.rewards import Score

DRAWN = Sampling(temperature=1.0, seed=5)


def completion(prompt: int, draw: int, text: str) -> Completion:
    size = len(text)
    logprobs = np.full(size, -0.5, dtype=np.float32)
    tokens, reason = np.arange(size, dtype=np.int32), "length" if text.endswith("...") else "stop"
    return Completion(prompt, draw, tokens, logprobs, logprobs, reason, text)


def problems(*answers: str) -> list[Sample]:
    return [Sample((user(f"Problem {i}"),), answer=answer, task="toy") for i, answer in enumerate(answers)]


def exact(sample: Sample, text: str) -> Score:
    if text == "crash":
        raise ZeroDivisionError("division by zero")
    if text.endswith("..."):
        return Score(0.0, info={"extracted": None, "reason": "missing"})
    right = text == sample.answer
    return Score(float(right), info={"extracted": text, "reason": "found" if right else "wrong"})


def run(lines: list[list[str]], answers: str, *, verify=exact, step=None, name="toy", **options) -> EvaluationResult:
    """The numbers of what a model says: `lines[problem][draw]`."""
    given = [
        answer_of(sample, completion(problem, draw, text), verify, step=step)
        for problem, sample in enumerate(problems(*answers))
        for draw, text in enumerate(lines[problem])
    ]
    n = len(lines[0])
    return summarise(given, n=n, **{"sampling": DRAWN if n > 1 else Sampling(temperature=0.0), "name": name, **options})


def test_every_number_of_a_small_evaluation_is_right():
    found = run([["1", "1", "2", "..."], ["5", "5", "5", "5"], ["4", "3", "4", "3"]], "123")
    m = found.metrics
    assert (m["problems"], m["answers"], m["errors"]) == (3, 12, 0)
    assert m["accuracy"] == m["average@4"] == m["pass@1"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert m["pass@2"] == pytest.approx((1 - 1 / 6) * 2 / 3)
    assert m["pass@4"] == pytest.approx(2 / 3)
    assert m["majority@4"] == pytest.approx(1 / 3)  # "1" wins; "5" is wrong; "4" was drawn before "3"
    # Problem 1: of the 6 pairs of 1 1 2 -, "1" is handed out in 11 12 12 1- 1-. Problem 3: pairs that start with 3.
    assert m["majority@2"] == pytest.approx((5 / 6 + 0 + 2 / 6) / 3)
    assert m["answer_entropy"] == pytest.approx((-(2 / 3) * math.log(2 / 3) - math.log(1 / 3) / 3 + math.log(2)) / 3)
    assert m["distinct_answers"] == pytest.approx(5 / 3)
    assert m["format_validity"] == pytest.approx(11 / 12)
    assert m["truncated"] == pytest.approx(1 / 12)
    assert m["mean_length"] == pytest.approx(14 / 12)
    assert found.accuracy.low < found.accuracy.estimate < found.accuracy.high


def test_greedy_accuracy_has_wilsons_interval():
    found = run([["1"], ["2"], ["x"], ["x"]], "1234")
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((0.15004, 0.84996), abs=1e-5)
    assert "majority@4" not in found.metrics


def test_answers_keep_what_was_said_and_why_it_scored_so():
    answers = run([["7", "1"]], "1", step=30).answers
    assert [answer.draw for answer in answers] == [0, 1]
    first = answers[0]
    assert len(first.token_ids) == first.tokens
    assert replace(first, token_ids=()) == Answer(
        sample_id=problems("1")[0].id,
        task="toy",
        prompt="Problem 0",
        expected="1",
        text="7",
        value=0.0,
        parts={},
        info={"extracted": "7", "reason": "wrong"},
        error=None,
        finish_reason="stop",
        tokens=1,
        logprob=-0.5,
        draw=0,
        step=30,
    )
    assert Answer.from_json(json.loads(json.dumps(first.to_json()))) == replace(first, token_ids=())


def test_an_answer_with_numpy_inside_is_still_a_line_of_json():
    def verify(sample: Sample, text: str) -> Score:
        return Score(np.float32(1), {"part": np.float32(0.5)}, {"path": np.arange(2), "what": {1}})

    row = run([["1"]], "1", verify=verify).answers[0].to_json()
    assert row["parts"] == {"part": 0.5}
    assert row["info"] == {"path": [0, 1], "what": "{1}"}
    json.dumps(row)


def test_a_failing_verifier_is_an_error_with_its_cause_and_no_zero():
    found = run([["1", "crash"], ["2", "2"]], "12", max_errors=0.25)
    assert found.metrics["errors"] == 1
    assert found.metrics["accuracy"] == 1.0
    assert found.metrics["pass@2"] == 1.0  # of the second problem: the first has one scored draw
    assert found.problems[0].draws == 1
    failed = found.answers[1]
    assert failed.value is None
    assert failed.error == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("score", "cause"),
    [
        (Score(math.nan), "nan"),
        (Score(0.0, error="timed out"), "timed out"),
        (1, "AttributeError"),
        (Score(None), "TypeError"),
    ],
)
def test_what_is_no_number_is_an_error(score: object, cause: str):
    def verify(sample: Sample, text: str) -> Score:
        return score if text == "odd" else exact(sample, text)

    found = run([["1"], ["odd"]], "12", verify=verify, max_errors=0.5)
    assert found.metrics["errors"] == 1
    assert found.metrics["accuracy"] == 1.0
    assert cause in found.answers[1].error


def test_too_many_errors_stop_the_evaluation():
    with pytest.raises(UserError, match=r"'toy': 2 of 4 answers.*ZeroDivisionError: division by zero"):
        run([["1", "crash"], ["crash", "2"]], "12")


def test_nothing_scored_is_no_result_whatever_is_allowed():
    with pytest.raises(UserError, match="1 of 1"):
        run([["crash"]], "1", max_errors=1.0)


def test_part_marks_count_for_the_average_and_not_for_the_accuracy():
    def verify(sample: Sample, text: str) -> Score:
        return Score({"a": 1.0, "b": 0.1 + 0.2 + 0.7 - 1e-16, "c": 0.4}[text])

    found = run([["a"], ["b"], ["c"]], "123", verify=verify)
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert found.metrics["average@1"] == pytest.approx(0.8)
    assert list(found.per_problem("value").values()) == pytest.approx([1, 1, 0.4])
    assert run([["c"]], "1", verify=verify, right_at=0.4).metrics["accuracy"] == 1


def test_a_verifier_that_extracts_nothing_gets_no_majority():
    found = run([["1", "2"]], "1", verify=lambda sample, text: Score(1.0))
    assert not [key for key in found.metrics if "majority" in key or "distinct" in key]


def test_a_result_survives_json():
    found = run([["1", "2"], ["2", "1"]], "12", sampling=Sampling(stop=("\n",), seed=3))
    back = EvaluationResult.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert back == found
    assert back.sampling == found.sampling
    assert back.answers == ()


def test_a_result_can_be_redone_from_its_answers():
    found = run([["1", "2"], ["2", "1"]], "12")
    lines = [json.dumps(answer.to_json()) for answer in found.answers]
    answers = [Answer.from_json(json.loads(line)) for line in lines]
    assert summarise(answers, n=2, sampling=DRAWN, name="toy") == found


def test_results_are_compared_problem_by_problem():
    answers = "0123456789" * 2
    worse = run([["x"]] * 10 + [[a] for a in answers[10:]], answers)
    better = run([[a] for a in answers], answers)
    found = compare_results(worse, better, np.random.default_rng(0), names=("sft", "dft"))
    assert found.difference.interval.estimate == 0.5
    assert found.difference.p_value == pytest.approx(2 / 2**10)
    assert found.sentence.startswith("dft is 50.0 points better than sft (95 % interval ")
    assert found.caveats == ()
    back = compare_results(better, worse, np.random.default_rng(0))
    assert "B is 50.0 points worse than A" in back.sentence
    same = compare_results(worse, worse, np.random.default_rng(0))
    assert same.sentence.startswith("no significant difference between A and B")


def test_what_two_evaluations_do_not_share_is_said():
    a = run([["1"], ["2"]], "12")
    b = run([["1", "1"]], "1", sampling=Sampling(temperature=0.7, seed=9))
    found = compare_results(a, b, np.random.default_rng(0), measure="value")
    assert found.difference.problems == 1
    assert found.caveats == (
        "1 problems that only one of them has scored are left out",
        "draws of each problem differ: 1 and 2",
        "sampling differs in temperature: 0.0 and 0.7",
    )


def test_results_without_a_common_problem_are_not_compared():
    other = run([["1"]], "7", name="other")
    with pytest.raises(UserError, match=r"'toy' and 'other' have no problem in common"):
        compare_results(run([["1"]], "1"), other, np.random.default_rng(0))


def test_faithful_answers_are_counted_where_a_verifier_says_so():
    def verify(sample: Sample, text: str) -> Score:
        score = exact(sample, text.rstrip("!"))
        return replace(score, parts={"faithful": float(not text.endswith("!"))}) if sample.answer != "3" else score

    metrics = run([["1"], ["2!"], ["3"], ["5"]], "1234", verify=verify).metrics
    assert metrics["faithful"] == pytest.approx(2 / 3)  # the third problem's verifier does not say
    assert metrics["faithful_right"] == 1 / 2
    assert "faithful_right" not in run([["5"]], "1", verify=verify).metrics
    assert "faithful" not in run([["1"]], "1").metrics


def test_a_vote_counts_answers_in_one_spelling():
    def verify(sample: Sample, text: str) -> Score:
        return Score(float(text != "7"), info={"extracted": text, "canonical": text.removesuffix(".0")})

    metrics = run([["7", "5", "5.0"]], "5", verify=verify).metrics
    assert metrics["majority@3"] == 1
    assert metrics["distinct_answers"] == 2


def test_right_and_wrong_answers_have_lengths_of_their_own_and_parts_their_means() -> None:
    parts = [{"correct": 1.0, "recall": 1.0, "rejected": 0.0}, {"correct": 0.0, "recall": 0.0, "rejected": 1.0}]
    parts += [{"correct": 0.0, "rejected": 0.0}]
    answers = [
        Answer(f"s{k}", "t", "?", "1", "", part["correct"], part, {}, None, "stop", tokens, -1.0, 0)
        for k, (part, tokens) in enumerate(zip(parts, (10, 30, 50), strict=True))
    ]
    metrics = summarise(answers, n=1, sampling=Sampling(temperature=0.0)).metrics
    assert (metrics["mean_length_right"], metrics["mean_length_wrong"]) == (10, 40)
    assert metrics["recall"] == 0.5  # of the answers that have it
    assert metrics["rejected"] == pytest.approx(1 / 3)
    assert "correct" not in metrics
    right = summarise(answers[:1], n=1, sampling=Sampling(temperature=0.0)).metrics
    assert "mean_length_wrong" not in right
