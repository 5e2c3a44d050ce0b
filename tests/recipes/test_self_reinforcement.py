"""Self-reinforcement made small: two rounds of preferring the newer model's answers, without a right answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import manifest, metrics, run_quietly

from posttrain.recipe import read_recipe

SMALL = ["data.seed.count=32", "data.unlabelled.count=24", "data.test.count=4", "sft.steps=2", "round_1.steps=1"]
SMALL += ["round_2.steps=1", *(f"{stage}.max_new_tokens=8" for stage in ("before", "test_sft", "test_1", "test"))]


def run_small(out: Path, *more: str) -> None:
    run_quietly(read_recipe("self-reinforcement", [*SMALL, *more, f"out={out}"]))


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / f"{stage}.jsonl").read_text().splitlines()]


def texts(found: list[dict[str, Any]], side: str = "response") -> set[str]:
    return {row[side][0]["content"] for row in found}


def test_each_round_prefers_the_newer_models_answers_to_those_of_the_model_before(tmp_path: Path) -> None:
    run_small(tmp_path)
    for pairs, newer, older in (("pairs_1", "newer_1", "older_1"), ("pairs_2", "newer_2", "newer_1")):
        made = rows(tmp_path, pairs)
        assert texts(made) <= texts(rows(tmp_path, newer))
        assert texts(made, "rejected") <= texts(rows(tmp_path, older))
        assert all(row["meta"]["scores"][0] > row["meta"]["scores"][1] for row in made)
        summary = manifest(tmp_path)["stages"][pairs]["summary"]
        values = [row["meta"]["values"] for row in made]
        assert summary["pair_precision"] == pytest.approx(sum(v == [1, 0] for v in values) / len(values))
    first = [row for row in metrics(tmp_path) if row["kind"] == "train" and row["stage"] == "round_1"]
    assert first[0]["loss"] == pytest.approx(0.6931472, abs=1e-4)  # the reference is the model that it starts from


def test_questions_without_answers_are_enough(tmp_path: Path) -> None:
    """Votes and judgements read no right answer; a small model's judgement leaves nothing, and the round is skipped."""
    file = tmp_path / "questions.jsonl"
    asked = [{"prompt": [{"role": "user", "content": f"Compute {n}+{n % 7}-{n % 5}."}]} for n in range(10, 22)]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    votes = "[{name: self_consistency, n: 2, max_new_tokens: 48}, "
    votes += "{name: paired_answers, chosen: newer_1, rejected: older_1, by: agreement}]"
    judged = "[{name: paired_answers, chosen: newer_2, rejected: newer_1}, {name: self_judge, max_new_tokens: 4}]"
    more = [f"data.unlabelled={{path: {file}}}", f"pairs_1.steps={votes}", f"pairs_2.steps={judged}"]
    run_small(tmp_path / "run", *more)
    stages = manifest(tmp_path / "run")["stages"]
    assert "pair_precision" not in stages["pairs_1"]["summary"]
    assert all(len(row["meta"]["scores"]) == 2 for row in rows(tmp_path / "run", "pairs_1"))
    assert stages["pairs_2"]["summary"]["samples"] == 0
    assert "not trained: pairs_2 kept no sample" in stages["round_2"]["summary"]["note"]
    assert stages["test"]["status"] == "finished"
