"""The report is looked at in a browser by hand; here: it is made from every state of a run, and says what it should."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from html_page import Page

from posttrain.errors import UserError
from posttrain.reporting import write_report
from posttrain.reporting.answers import LONGEST, SHOWN_OF_A_KIND, folded
from posttrain.reporting.formats import duration, measure, number
from posttrain.reporting.plots import MOST_POINTS, series


def answer(sample: int, value: float | None, **more: Any) -> dict[str, Any]:
    right = {"sample_id": f"id{sample}", "task": "chains", "prompt": f"What is {sample} + 1?", "expected": "7"}
    rest = {"text": f"answer {sample}", "value": value, "parts": {}, "info": {}, "error": None, "draw": 0, "step": 0}
    return {**right, **rest, "finish_reason": "stop", "tokens": 12, "logprob": -1.5, **more}


def lines(path: Path, rows: list[dict[str, Any]], cut: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + cut, encoding="utf-8")


def manifest(run: Path, status: str = "finished", **more: Any) -> None:
    stages = {
        "before": {"kind": "evaluate", "status": "finished", "seconds": 12.5, "fingerprint": "ab12", "summary": {}},
        "sft": {"kind": "train", "status": status, "seconds": 90.0, "fingerprint": "cd34", "summary": {"steps": 40}},
        "after": {"kind": "evaluate", "status": status, "seconds": 13.0, "fingerprint": "ef56", "summary": {}},
    }
    given = {
        "name": "trial",
        "status": status,
        "error": None,
        "created": "2026-03-02T14:03:11+00:00",
        "updated": "2026-03-02T14:08:23+00:00",
        "seed": 17,
        "recipe": {"name": "trial", "stages": [{"name": "sft", "learning_rate": 0.0003}]},
        "changed": {"stages.sft.learning_rate": [0.0001, 0.0003]},
        "versions": {"torch": "2.99.1"},
        "machine": {"cpu": "Z80", "cores": 2, "memory_gib": 7.8, "gpu": None, "system": "CP/M", "python": "3.11.2"},
        "git_commit": "abcdef1",
        "command": "posttrain run trial",
        "stages": stages,
    }
    run.mkdir(exist_ok=True)
    (run / "manifest.json").write_text(json.dumps(given | more), encoding="utf-8")


def result(run: Path, stage: str, accuracy: float, problems: Any, **more: Any) -> None:
    metrics = {
        "accuracy": {"estimate": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "level": 0.95},
        "pass@4": {"estimate": 0.8125, "low": 0.7, "high": 0.9, "level": 0.95},
        "log_likelihood": -14.25,
    }
    row = {"stage": stage, "model": f"models/{stage}", "data": "chains, test", "metrics": metrics}
    (run / "results").mkdir(exist_ok=True)
    row |= {"problems": problems, "seconds": 12.5, "tokens": 34567} | more
    (run / "results" / f"{stage}.json").write_text(json.dumps(row), encoding="utf-8")


def steps(count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        times = {"time/data": 0.1, "time/forward": 0.5, "time/backward": 1.0, "time/optimiser": 0.15}
        train = {"loss": 2.5 / step, "lr": 1e-4, "grad_norm": 1.0, "tokens": 99, "tokens_per_second": 50.0, "kl": 0.125}
        rows.append({"stage": "sft", "step": step, "seconds": 2.0 * step, "kind": "train", **train, **times})
    bounds = {"accuracy": 0.625, "accuracy_low": 0.5, "accuracy_high": 0.75}
    return [
        *rows,
        {"stage": "sft", "step": count, "seconds": 2.0 * count, "kind": "evaluation", "loss": 0.75, **bounds},
    ]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    run = tmp_path / "trial"
    manifest(run)
    lines(run / "metrics.jsonl", steps(40))
    before, after = [float(i < 5) for i in range(20)], [float(i >= 2) for i in range(20)]
    for stage, values in (("before", before), ("after", after)):
        lines(run / "samples" / f"{stage}.jsonl", [answer(i, value) for i, value in enumerate(values)])
        result(run, stage, sum(values) / 20, {f"id{i}": value for i, value in enumerate(values)})
    return run


def test_finished_run_shows_its_numbers(finished: Path) -> None:
    path = write_report(finished)
    assert path == finished / "report.html"
    text = Page(path).text
    for expected in ("trial", "finished", "25.0 %", "90.0 %", "80.0 to 100.0", "81.2 %", "34,567", "−14.25", "seed 17"):
        assert expected in text
    for expected in ("stages.sft.learning_rate 0.0003 0.0001", "torch 2.99.1", "Z80", "7.8 GiB", "posttrain run trial"):
        assert expected in text
    assert "learning_rate: 0.0003" in text  # the whole recipe as YAML
    assert "cut off" not in text


def test_difference_between_evaluations_is_paired_by_problem(finished: Path) -> None:
    text = Page(write_report(finished)).text
    assert "+65.0 points" in text  # 15 became right and 2 became wrong, of 20
    assert "20 pairs" in text
    result(finished, "after", 0.9, {"other": 1.0})
    assert "pairs" not in Page(write_report(finished)).text


def test_results_as_the_evaluation_writes_them_are_read_too(finished: Path) -> None:
    for stage, right in (("before", 5), ("after", 18)):
        problems = [{"sample_id": f"id{i}", "draws": 1, "value": float(i < right)} for i in range(20)]
        metrics = {"accuracy": right / 20, "accuracy_low": 0.125, "accuracy_high": 0.375, "pass@1": 0.5, "pass@8": 0.75}
        result(finished, stage, 0.5, problems, metrics=metrics, level=0.9)
    page = Page(write_report(finished))
    for expected in ("25.0 % 12.5 to 37.5", "+65.0 points", "90 % intervals", "20 problems"):
        assert expected in page.text
    table, others = page.text.split("All other metrics (1)")
    assert "Pass@8" in table
    assert "pass@1" in others


def test_answers_stand_side_by_side_with_counts_of_each_kind(finished: Path) -> None:
    page = Page(write_report(finished))
    for chip in ("All 20", "Changed 17", "Became right 15", "Became wrong 2", "Right 18", "Wrong 2"):
        assert chip in page.text
    assert page.source.count('class="card fixed') == SHOWN_OF_A_KIND
    assert page.source.count('class="card broken') == 2
    assert f"{SHOWN_OF_A_KIND + 2 + 3} of 20 problems shown" in page.text


def test_curves_are_drawn_for_every_metric_with_text_as_text(finished: Path) -> None:
    page = Page(write_report(finished))
    for title in ("Loss", "Accuracy", "Learning rate", "Gradient norm", "Trained tokens per second", "kl", "time/data"):
        assert title in page.text
    assert page.tags.count("svg") == page.source.count('class="curve"') + page.source.count('class="interval"')
    assert "accuracy_low" not in page.source
    assert "loss, train: 2.5 at step 1, 0.0625 at step 40; loss, evaluation: 0.75 at step 40" in page.source


def test_metrics_without_any_usual_name_are_drawn_all_the_same(finished: Path) -> None:
    lines(finished / "metrics.jsonl", [{"stage": "sft", "step": i, "a": i, "b": i, "c": i, "d": i} for i in range(9)])
    page = Page(write_report(finished))
    assert "More curves (1)" in page.text
    assert page.source.count('class="curve"') == 4


def test_time_is_split_and_what_was_not_measured_is_other(finished: Path) -> None:
    text = Page(write_report(finished)).text
    assert "1 min 56 s in all" in text
    for part in ("4.0 s 4.4 %", "20 s 22.2 %", "40 s 44.4 %", "6.0 s 6.7 %", "20 s 22.2 %"):
        assert part in text


def test_page_loads_nothing_from_outside(finished: Path) -> None:
    page = Page(write_report(finished))
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"link", "iframe", "img", "object", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://|fetch\(|import\(", page.source)


def test_samples_and_names_are_escaped(finished: Path) -> None:
    evil = "<script>alert(1)</script>&\"'</div>"
    rows = [answer(i, 0.0, text=evil, prompt=evil, expected=evil, info={evil: evil}, task=evil) for i in range(3)]
    lines(finished / "samples" / "before.jsonl", rows)
    lines(finished / "metrics.jsonl", [{**row, evil: 1.0} for row in steps(3)])
    manifest(finished, name=evil, status="failed", error=evil, command=evil, changed={evil: [evil, evil]})
    page = Page(write_report(finished))
    assert page.tags.count("script") == 1
    assert "<script>alert" not in page.source
    assert "alert(1)" in page.text


def test_running_run_with_cut_off_last_lines_is_shown_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    manifest(run, status="running")
    lines(run / "metrics.jsonl", steps(10), cut='{"stage": "sft", "step": 11, "lo')
    lines(run / "samples" / "sft.jsonl", [answer(1, 0.0, step=5), answer(1, 1.0, step=10)], cut='{"sample_id": "i')
    page = Page(write_report(run))
    assert "metrics.jsonl: the last line was cut off and is left out." in page.text
    assert "samples/sft.jsonl: the last line was cut off and is left out." in page.text
    assert "was still going" in page.text
    assert "step 5" in page.text
    assert "0.25 at step 10" in page.source


def test_broken_lines_and_results_are_counted(finished: Path) -> None:
    text = (finished / "metrics.jsonl").read_text().replace('{"stage": "sft", "step": 2,', "nonsense", 1) + "[1]\n"
    (finished / "metrics.jsonl").write_text(text)
    (finished / "results" / "after.json").write_text('{"stage": "af')
    text = Page(write_report(finished)).text
    assert "metrics.jsonl: 2 unreadable lines left out." in text
    assert "results/after.json: not readable as JSON, left out." in text
    assert "25.0 %" in text


def test_failed_run_says_first_what_happened_and_what_to_do(finished: Path) -> None:
    manifest(finished, status="failed", error="NonFiniteLoss: loss is NaN at step 35")
    text = Page(write_report(finished)).text
    assert text.index("NonFiniteLoss: loss is NaN at step 35") < text.index("Results")
    assert "run the same command again to resume" in text[: text.index("Results")]


def test_interrupted_run_without_metrics_or_answers_makes_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    manifest(run, status="interrupted", stages={}, changed={})
    (run / "metrics.jsonl").write_text("")
    text = Page(write_report(run)).text
    assert "Run the same command again to resume" in text
    assert "Learning curves" not in text


def test_manifest_with_only_a_name_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "bare"}')
    assert "bare" in Page(write_report(tmp_path)).text


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        write_report(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": ')
    with pytest.raises(UserError, match="not readable as JSON"):
        write_report(tmp_path)


def test_same_run_makes_the_same_page(finished: Path) -> None:
    first = write_report(finished).read_bytes()
    assert write_report(finished).read_bytes() == first
    assert not list(finished.glob("*.tmp"))


def test_step_logged_again_after_a_resume_counts_once(finished: Path) -> None:
    again = {"stage": "sft", "step": 40, "seconds": 80.0, "kind": "train", "loss": 0.5}
    lines(finished / "metrics.jsonl", [*steps(40), again])
    page = Page(write_report(finished))
    assert "0.5 at step 40" in page.source
    assert "0.0625 at step 40" not in page.source


def test_answers_without_a_score_are_kept_apart(finished: Path) -> None:
    rows = [answer(0, None, error="verifier timed out"), answer(1, 0.5, parts={"format": 1.0})]
    lines(finished / "samples" / "after.jsonl", rows)
    text = Page(write_report(finished)).text
    assert "Not scored 1" in text
    assert "not scored: verifier timed out" in text
    assert "value 0.5 · format 1" in text


def test_draws_of_one_problem_are_summed_up(finished: Path) -> None:
    lines(finished / "samples" / "after.jsonl", [answer(0, float(draw == 1), draw=draw) for draw in range(4)])
    assert "right in 1 of 4 draws" in Page(write_report(finished)).text


def test_losses_that_are_not_finite_are_counted_not_drawn(finished: Path) -> None:
    rows = steps(10)
    rows[3]["loss"] = math.nan
    lines(finished / "metrics.jsonl", rows)
    page = Page(write_report(finished))
    assert "1 value not finite, not drawn" in page.text
    assert "nan" not in "".join(re.findall(r'points="([^"]*)"', page.source))


def test_long_curve_is_thinned_to_means_with_their_range() -> None:
    values = [float(i % 10) for i in range(10 * MOST_POINTS)]
    thin = series("train", range(len(values)), values, [], [])
    assert len(thin.y) == MOST_POINTS
    assert thin.every == 10
    assert set(thin.y) == {4.5}
    assert set(thin.low) == {0.0}
    assert set(thin.high) == {9.0}
    assert thin.x[-1] == len(values) - 1


def test_folded_text_keeps_its_start_and_its_end() -> None:
    text = "".join(f"line {i}\n" for i in range(500)) + "the answer is 7"
    parts = folded(text)
    assert parts.head + parts.middle + parts.tail == text
    assert parts.tail.endswith("the answer is 7")
    assert folded("short").middle == ""
    huge = folded("x" * (3 * LONGEST))
    assert len(huge.head + huge.middle + huge.tail) + huge.lost == 3 * LONGEST


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (number(12345), "12,345"),
        (number(0.00003), "3e-5"),
        (number(-0.41271), "−0.4127"),
        (number(math.nan), "NaN"),
        (measure("pass@4", 0.5), "50.0\u202f%"),
        (measure("loss", 0.5), "0.5"),
        (duration(4.21), "4.2 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(7384), "2 h 03 min"),
    ],
)
def test_numbers_are_written_for_reading(written: str, expected: str) -> None:
    assert written == expected
