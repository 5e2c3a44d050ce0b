"""Trackers by name."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.errors import UserError
from posttrain.training import trackers
from posttrain.training.journal import Journal
from posttrain.training.trackers import check_trackers

ROW = {"stage": "sft", "step": 3, "kind": "train", "loss": 0.5, "tokens": 12}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])


def test_one_that_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'posttrain\[wandb\]'"):
        check_trackers(["wandb"])


def test_tensorboard_has_every_number_by_stage_and_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, trackers=["tensorboard"])
    journal.metrics(ROW)
    journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["sft/loss", "sft/tokens"]
    (event,) = events.Scalars("sft/loss")
    assert (event.step, event.value) == (3, 0.5)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_that_goes_on_goes_on_in_the_tracker(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is installed for the tests: a stand-in takes down what it is called with."""
    started: list[dict[str, Any]] = []
    logged: list[dict[str, Any]] = []
    module = SimpleNamespace(init=lambda **options: started.append(options), log=logged.append, finish=lambda: None)
    monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: True)
    for _ in range(2):
        journal = Journal(tmp_path / "run", trackers=[name])
        journal.metrics(ROW)
        journal.close()
    assert started[0] == started[1]
    assert started[0]["resume"] == "allow"
    assert logged[0] == {"sft/loss": 0.5, "sft/tokens": 12, "sft/step": 3}


def test_a_rank_that_does_not_write_has_no_trackers(tmp_path: Path) -> None:
    Journal(tmp_path, active=False, trackers=["no such tracker"]).metrics(ROW)
