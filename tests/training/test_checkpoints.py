"""Checkpoints: whole or not there at all."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import same, small_loop, trained
from running import metrics

from posttrain.errors import UserError
from posttrain.training import checkpoints
from posttrain.training.checkpoints import CheckpointStore
from posttrain.training.loop import train

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3).T, "bf16": torch.ones(3, dtype=torch.bfloat16)}


def store(folder: Path, fingerprint: str = "recipe") -> CheckpointStore:
    return CheckpointStore(folder, fingerprint)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.rand(2)}}, "param_groups": [{"lr": 0.1}]}
    store(tmp_path).save(3, WEIGHTS, optimiser, {"progress": {"loss": 0.1 + 0.2}})
    found = store(tmp_path).latest()
    assert found is not None
    assert (found.step, found.state()) == (3, {"progress": {"loss": 0.1 + 0.2}})
    assert same(found.weights(), WEIGHTS)
    assert found.weights()["bf16"].dtype == torch.bfloat16
    assert torch.equal(found.optimiser()["state"][0]["exp_avg"], optimiser["state"][0]["exp_avg"])  # type: ignore[index]


def test_the_newest_whole_one_is_the_latest(tmp_path: Path) -> None:
    for step in (9, 10, 101):
        store(tmp_path).save(step, WEIGHTS, {}, {})
    (tmp_path / "step-00000200.partial").mkdir()
    (tmp_path / "step-00000101" / "state.json").unlink()
    found = store(tmp_path).latest()
    assert found is not None
    assert found.step == 10


def test_there_may_be_none(tmp_path: Path) -> None:
    assert store(tmp_path / "nowhere").latest() is None
    assert store(tmp_path / "nowhere").at(3) is None


def test_keeping_one_drops_the_others_and_the_half_written(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        store(tmp_path).save(step, WEIGHTS, {}, {})
    (tmp_path / "step-00000007.partial").mkdir()
    store(tmp_path).keep_only(2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    store(tmp_path).save(1, {"w": torch.zeros(2)}, {}, {})
    store(tmp_path).save(1, {"w": torch.ones(2)}, {}, {})
    found = store(tmp_path).at(1)
    assert found is not None
    assert found.weights()["w"].tolist() == [1, 1]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    store(tmp_path).save(1, WEIGHTS, {}, {})
    with pytest.raises(UserError, match=r"step-00000001' was written by another recipe.*resume=false"):
        store(tmp_path, "other recipe").latest()


def broken(error: Exception) -> Any:
    def raises(*arguments: Any, **options: Any) -> None:
        raise error

    return raises


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("save_file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        ("save_file", checkpoints.SafetensorError("Error while serializing: I/O error: No space left on device")),
        ("torch.save", RuntimeError("PytorchStreamWriter failed writing file data/0: No space left on device")),
    ],
)
def test_a_full_disk_ends_in_one_message_and_leaves_the_earlier_checkpoint_whole(
    what: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path).save(1, WEIGHTS, {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(f"posttrain.training.checkpoints.{what}", broken(error))
        with pytest.raises(UserError, match=r"cannot write checkpoint.*No space left on device.*make room and run"):
            store(tmp_path).save(2, WEIGHTS, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = store(tmp_path).latest()
    assert found is not None
    assert same(found.weights(), WEIGHTS)


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Writes beyond a size fail in the system, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_whose_checkpoint_did_not_fit_goes_on_from_the_one_before(
    tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    whole = small_loop(tmp_path / "whole")
    train(whole)
    cut = small_loop(tmp_path / "cut")
    cut = replace(cut, show=lambda step, row: limit_files(2**15) if step == 4 else None)
    with pytest.raises(UserError, match=r"cannot write checkpoint.*step-00000004"):
        train(cut)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000002"]
    limit_files(resource.RLIM_INFINITY)
    resumed = small_loop(tmp_path / "cut")
    train(resumed)
    assert same(trained(resumed), trained(whole))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
