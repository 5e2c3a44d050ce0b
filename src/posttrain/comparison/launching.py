"""Where jobs run: processes on this machine, or tasks of a Ray cluster."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from posttrain.comparison.arms import Job
from posttrain.errors import UserError
from posttrain.recipe import to_yaml

MANY_CORES = 8
"""From here on a run gets four threads: small models do not gain from more, and the start of a run costs memory."""


class Running(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""

    def interrupt(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it now."""


class Launcher(Protocol):
    """Starts jobs, at most `jobs` at once."""

    jobs: int

    def start(self, job: Job) -> Running:
        """Start a job, or go on with one that was cut off."""


class LocalProcesses:
    """Processes on this machine that share its cores, or have a GPU each.

    `jobs` at once; default: as many as the cores have room for (OMP_NUM_THREADS each, where it is set), or the GPUs.
    """

    def __init__(self, jobs: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._devices = torch.cuda.device_count()
        wished = int(os.environ.get("OMP_NUM_THREADS") or (4 if cores >= MANY_CORES else 1))
        self.jobs = jobs or self._devices or max(1, cores // wished)
        self.threads = max(1, cores // self.jobs)
        self._slots: list[_Process | None] = [None] * self.jobs

    def start(self, job: Job) -> Running:
        """Start a job as `posttrain run FILE`; what it says goes to a file beside its folder."""
        slot = next(n for n, held in enumerate(self._slots) if held is None or held.poll() is not None)
        more = {"OMP_NUM_THREADS": str(self.threads)}
        if self._devices > 1:
            more["CUDA_VISIBLE_DEVICES"] = _visible(slot % self._devices)
        self._slots[slot] = _Process(job, more)
        return self._slots[slot]  # type: ignore[return-value]


class _Process:
    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        with log_file(job).open("wb") as log:
            self._process = subprocess.Popen(
                command(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def interrupt(self) -> None:
        if self.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            self._process.kill()
            self._process.wait()


class RayTasks:
    """Tasks of a Ray cluster: the one that RAY_ADDRESS names, or a local one. All machines see the same files.

    `jobs` at once; default: as many as the cluster has room for at `threads` cores each.
    """

    def __init__(self, jobs: int | None = None, threads: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing reaches a network that the user has not named
        try:
            import ray
        except ImportError:
            raise UserError("--cluster ray needs the package ray: pip install 'posttrain[ray]'") from None
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        found: dict[str, float] = ray.cluster_resources()
        self._gpus = 1 if found.get("GPU") else 0
        self.threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 1)
        self.jobs = jobs or max(1, int(found["GPU"] if self._gpus else found.get("CPU", 1) // self.threads))

    def start(self, job: Job) -> Running:
        """Start a job as a task; Ray chooses the machine."""
        task = self._ray.remote(_run_there).options(num_cpus=self.threads, num_gpus=self._gpus, max_retries=0)
        more = {"OMP_NUM_THREADS": str(self.threads)}
        return _RayTask(self._ray, task.remote(command(job), os.getcwd(), more, str(log_file(job).resolve())))


class _RayTask:
    """A task that Ray was given. Cancelling one has not been tried on a cluster: what it does there is Ray's to say."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def poll(self) -> int | None:
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return int(self._ray.get(self._reference))
        except self._ray.exceptions.RayError:  # cancelled, or its machine is gone
            return 1

    def interrupt(self) -> None:
        self._ray.cancel(self._reference)

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)


def _run_there(arguments: list[str], folder: str, environment: Mapping[str, str], log: str) -> int:
    """What a Ray worker does; Ray cancels a task with a KeyboardInterrupt."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments[1:]],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            return process.wait()


def command(job: Job) -> list[str]:
    """The command of a job, whose recipe is written beside its folder."""
    path = beside(job, ".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(job.recipe), encoding="utf-8")
    return [sys.executable, "-m", "posttrain.cli", "run", str(path), "--json"]


def log_file(job: Job) -> Path:
    """Where the output of a job goes."""
    path = beside(job, ".log")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def beside(job: Job, suffix: str) -> Path:
    """A file of a job that is not in its run folder."""
    return job.folder.with_name(job.folder.name + suffix)


def _visible(device: int) -> str:
    """A GPU by the name under which the parent of a process may use it."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[device] if given else str(device)
