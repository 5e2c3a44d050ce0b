"""The recipe `ift` and the arms of claim 24, made small; cut off and gone on with."""

from pathlib import Path
from typing import Any

import pytest
from running import assert_same_run, largest_difference, metrics, run_quietly, save_tiny, small_recipe, weights

from posttrain.comparison.arms import arm_recipe
from posttrain.comparison.claims import find_claim
from posttrain.comparison.spec import read_comparison
from posttrain.policy import Policy
from posttrain.recipe import check_recipe, read_recipe
from posttrain.training.checkpoints import CheckpointStore

SMALL = ["steps=2", "batch_size=4", "data.train.count=16", "data.test.count=2", "test.max_new_tokens=24"]
SPEC = {"name": "ift", "mix": 0.5, "mix_start": 0.2, "mix_noise": 0.3, "prediction_temperature": 0.7}


def test_ift_trains_and_answers(tmp_path: Path) -> None:
    content = read_recipe("ift", [*SMALL, f"out={tmp_path / 'run'}"]).model_dump(mode="json")
    content["stages"] = {name: content["stages"][name] for name in ("train", "test")}
    run_quietly(check_recipe(content))
    steps = [row for row in metrics(tmp_path / "run") if row["kind"] == "train"]
    assert [row["mix"] for row in steps] == pytest.approx([0.2, 0.2])
    assert all(row["mixed_nll"] != row["gold_nll"] for row in steps)
    assert all(0.3 < row["predicted"] < 1 for row in steps)
    assert (tmp_path / "run" / "results" / "test.json").is_file()


def test_the_arms_of_the_claim_differ_in_what_they_say(tmp_path: Path) -> None:
    claim = read_comparison(find_claim("24"))
    objectives = {name: arm_recipe(claim, name).stages["train"].objective for name in claim.arms}
    assert objectives["sft"] == {"name": "nll", "reduction": "sequences"}
    ift = {"name": "ift", "mix": 0.2, "decay": 0.95}
    assert objectives["ift"] == ift
    assert objectives["detached"] == {**ift, "detach": "weights"}
    assert objectives["mix-only"] == {**ift, "decay": 0.0}
    assert objectives["propagation-only"] == {**ift, "mix": 0.0}


def test_a_run_that_broke_off_ends_like_one_that_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "model")
    stage = {"kind": "train", "objective": SPEC, "steps": 5, "batch_size": 4, "checkpoint_every": 2}
    whole, cut = (small_recipe(model, tmp_path / name, {"sft": stage}) for name in ("whole", "cut"))
    run_quietly(whole)
    save = CheckpointStore.save

    def last(*arguments: Any) -> None:
        save(*arguments)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", last)
        with pytest.raises(RuntimeError, match="power cut"):
            run_quietly(cut)
    run_quietly(cut)
    assert [row["step"] for row in metrics(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(("architecture", "moves"), [("llama", False), ("qwen2", True)])
def test_the_input_table_of_an_untied_model_stays_as_it_was(architecture: str, moves: bool, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", architecture)
    stage = {"kind": "train", "objective": "ift", "steps": 2, "batch_size": 4, "weight_decay": 0.1}
    run_quietly(small_recipe(model, tmp_path / "run", {"sft": stage}))
    before = Policy.load(str(model)).model.get_input_embeddings().weight
    after = weights(tmp_path / "run", "sft")["model.embed_tokens.weight"]
    assert (largest_difference({"": before.detach()}, {"": after}) > 0) == moves
