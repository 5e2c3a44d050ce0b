"""What is read from run folders: last tenths, sums over what was not logged, thinned curves."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.comparison.collect import POINTS, collect


def write_run(folder: Path, rows: list[dict[str, Any]], results: dict[str, Any], stages: dict[str, Any]) -> Path:
    (folder / "results").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"stages": stages}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for stage, result in results.items():
        (folder / "results" / f"{stage}.json").write_text(json.dumps(result))
    return folder


def train_rows(stage: str, steps: int, every: int = 1) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "kind": "train", "step": step, "seconds": step / 10, "loss": float(step), "tokens": 5,
         "input_tokens": 10, "time/source": 1.0}
        for step in range(every, steps + 1, every)
    ]  # fmt: skip


def stage(seconds: float, **summary: float) -> dict[str, Any]:
    return {"kind": "train", "status": "finished", "seconds": seconds, "summary": {"seconds": seconds, **summary}}


def test_a_logged_metric_is_its_mean_over_the_last_tenth(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", train_rows("train", 100), {}, {"train": stage(9.0, steps=100)})
    (run,) = collect({"a": {0: folder}})[0]["a"]
    assert run.values["train.log.loss"] == pytest.approx(sum(range(91, 101)) / 10)
    assert run.values["train.input_tokens"] == 1000
    assert (run.seconds, run.values["train.seconds"]) == (9.0, 9.0)


def test_what_only_some_steps_log_is_their_mean(tmp_path: Path) -> None:
    rows = [{**row, **({"reward": row["step"]} if row["step"] % 2 else {})} for row in train_rows("train", 100)]
    folder = write_run(tmp_path / "r", rows, {}, {"train": stage(9.0, steps=100)})
    (run,) = collect({"a": {0: folder}})[0]["a"]
    assert run.values["train.log.reward"] == pytest.approx(95)


def test_steps_that_were_not_logged_count_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", train_rows("train", 100, every=10), {}, {"train": stage(9.0)})
    (run,) = collect({"a": {0: folder}})[0]["a"]
    assert run.values["train.input_tokens"] == 1000


def test_steps_behind_the_last_row_count_too(tmp_path: Path) -> None:
    rows = train_rows("train", 100, every=10)
    folder = write_run(tmp_path / "r", rows, {}, {"train": stage(9.0, steps=104)})  # stopped early
    (run,) = collect({"a": {0: folder}})[0]["a"]
    assert run.values["train.input_tokens"] == 1040
    counted = write_run(tmp_path / "s", rows, {}, {"train": stage(9.0, steps=104, input_tokens=1037)})
    (run,) = collect({"a": {0: counted}})[0]["a"]
    assert run.values["train.input_tokens"] == 1037


def test_what_a_stage_counts_of_its_data_is_a_measure_too(tmp_path: Path) -> None:
    made = {"kind": "curate", "summary": {"samples": 3, "pair_precision": 0.5, "after_1_top": 3}}
    folder = write_run(tmp_path / "r", train_rows("train", 10), {}, {"pairs": made, "train": stage(9.0)})
    values = collect({"a": {0: folder}})[0]["a"][0].values
    assert (values["pairs.samples"], values["pairs.pair_precision"]) == (3, 0.5)


def test_a_long_curve_is_thinned_and_ends_where_it_ends(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", train_rows("train", 1001), {}, {"train": stage(9.0)})
    curve = collect({"a": {0: folder}})[0]["a"][0].curves["train"]
    assert len(curve["step"]) <= POINTS
    assert {len(column) for column in curve.values()} == {len(curve["step"])}
    assert (curve["step"][-1], curve["tokens"][-1]) == (1001, 5005)
    assert curve["loss"][0] == pytest.approx(sum(range(1, 18)) / 17)
    assert "time/source" not in curve


def test_several_train_stages_are_also_added_up(tmp_path: Path) -> None:
    stages = {"sft": stage(4.0, loss=2.0), "dpo": stage(6.0, loss=1.0)}
    folder = write_run(tmp_path / "r", [*train_rows("sft", 3), *train_rows("dpo", 2)], {}, stages)
    values = collect({"a": {0: folder}})[0]["a"][0].values
    assert (values["train.seconds"], values["train.input_tokens"], values["train.loss"]) == (10.0, 50.0, 1.0)
    assert values["sft.seconds"] == 4.0


def test_what_stages_imitated_is_weighed_by_their_steps(tmp_path: Path) -> None:
    stages = {"sft": stage(4.0, imitated=1.0, steps=30), "grpo": stage(6.0, imitated=0.0, steps=10)}
    folder = write_run(tmp_path / "r", [*train_rows("sft", 3), *train_rows("grpo", 2)], {}, stages)
    assert collect({"a": {0: folder}})[0]["a"][0].values["train.imitated"] == 0.75


def test_problems_are_in_one_order_for_all_runs(tmp_path: Path) -> None:
    one = {"metrics": {"accuracy": 0.5}, "problems": {"x": 1.0, "y": 0.0}}
    two = {"metrics": {"accuracy": 1.0}, "problems": {"z": 1.0, "x": 1.0}}
    folders = {seed: write_run(tmp_path / str(seed), [], {"test": r}, {}) for seed, r in enumerate((one, two))}
    runs, problems = collect({"a": folders})
    assert problems == {"test": ["x", "y", "z"]}
    assert [run.shares["test"] for run in runs["a"]] == [[1.0, 0.0, None], [1.0, None, 1.0]]


def test_an_evaluation_without_right_answers_has_numbers_and_no_shares(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [], {"test": {"metrics": {"log_likelihood": -1.0}}}, {})
    run = collect({"a": {0: folder}})[0]["a"][0]
    assert (run.values, run.shares) == ({"test.log_likelihood": -1.0}, {})


def test_a_reward_says_when_it_was_saturated_and_what_was_gained_by_then(tmp_path: Path) -> None:
    rewards = [0.1, 0.9, 1.0, 1.0, 1.0]
    rows = [
        {"stage": "rl", "kind": "train", "step": step, "loss": 0.0, "reward": value}
        for step, value in enumerate(rewards, 1)
    ]
    rows += [
        {"stage": "rl", "kind": "evaluation", "step": step, "accuracy": value}
        for step, value in ((0, 0.25), (3, 0.5), (5, 0.375))
    ]
    values = collect({"a": {0: write_run(tmp_path / "r", rows, {}, {"rl": stage(1.0)})}})[0]["a"][0].values
    for name in ("rl", "train"):  # the last train stage stands for 'train', where none is called so
        assert values[f"{name}.saturation"] == 3
        assert values[f"{name}.gain_before_saturation"] == 0.25
        assert values[f"{name}.gain_after_saturation"] == -0.125
        assert values[f"{name}.gain"] == 0.125
    folder = write_run(tmp_path / "s", train_rows("train", 3), {}, {"train": stage(1.0)})
    assert "train.saturation" not in collect({"a": {0: folder}})[0]["a"][0].values
