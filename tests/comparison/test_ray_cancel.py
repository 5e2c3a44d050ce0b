"""What becomes of a job that Ray cancels, as far as it can be seen without a cluster."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.comparison.launching import _run_there

CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
open("ready", "w").close()
while True:
    time.sleep(0.01)
"""


def test_a_cancelled_task_lets_its_run_save_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait, calls = subprocess.Popen.wait, []

    def cancelled(process: Any) -> int:
        calls.append(process)
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", cancelled)
    assert _run_there([sys.executable, "-c", CHILD], str(tmp_path), {}, str(tmp_path / "log")) == 130
    assert len(calls) == 2
