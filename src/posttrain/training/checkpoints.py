"""Checkpoints inside a stage: everything that a cut-off run needs to go on as if it had not been cut off."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import UserError

PARTIAL = ".partial"
FULL = 2**24
"""Bytes free; below this a failed write is put down to the disk."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `step` steps are done."""

    folder: Path
    step: int

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters by name, on the CPU."""
        return load_file(self.folder / "weights.safetensors")

    def optimiser(self) -> dict[str, Any]:
        """The optimiser's state, on the CPU."""
        return self._loaded("optimiser.pt")

    def state(self) -> dict[str, Any]:
        """What the loop keeps beside weights and optimiser: plain values and tensors on the CPU."""
        return self._loaded("state.pt")

    def _loaded(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self.folder / name, map_location="cpu", weights_only=True)
        return state


class CheckpointStore:
    """The checkpoints of one stage. Each is written beside its place and renamed when it is whole and on the disk.

    Writing and dropping are two calls: what a new checkpoint replaces goes only when nothing refers to it any more.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def save(self, step: int, weights: dict[str, Tensor], optimiser: dict[str, Any], state: dict[str, Any]) -> None:
        """Write the checkpoint of `step`; one that is there already is replaced.

        Raises `UserError` when it cannot be written (disk full); earlier checkpoints are untouched then.
        """
        target = self._place(step)
        partial = target.with_suffix(PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial / "weights.safetensors")
            torch.save(optimiser, partial / "optimiser.pt")
            torch.save(state, partial / "state.pt")
            content = {"step": step, "fingerprint": self.fingerprint}
            (partial / "state.json").write_text(json.dumps(content), encoding="utf-8")
            for path in (*partial.iterdir(), partial):
                _flush(path)
            _drop(target)
            partial.rename(target)
            _flush(self.folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"cannot write checkpoint '{target}': {_cause(error, self.folder)}; what was saved before is whole: "
                "make room and run the same command again"
            ) from error

    def keep_only(self, step: int) -> None:
        """Drop every checkpoint but the one of `step`, and what half-written ones left behind."""
        kept = self._place(step)
        for folder in self.folder.glob("step-*"):
            if folder != kept:
                _drop(folder)

    def at(self, step: int) -> Checkpoint | None:
        """The whole checkpoint of `step`, or None.

        Raises `UserError` when it belongs to another recipe.
        """
        folder = self._place(step)
        if not (folder / "state.json").is_file():
            return None
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if content["fingerprint"] != self.fingerprint:
            raise UserError(
                f"checkpoint '{folder}' was written by another recipe (or other data, or another start): "
                "give another 'out' folder, set 'resume=false' to start over, or go back to that recipe"
            )
        return Checkpoint(folder, content["step"])

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. Raises `UserError` as `at` does."""
        steps = [int(p.name.removeprefix("step-")) for p in self.folder.glob("step-*") if p.suffix != PARTIAL]
        found = (self.at(step) for step in sorted(steps, reverse=True))
        return next((checkpoint for checkpoint in found if checkpoint is not None), None)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def _flush(path: Path) -> None:
    """Make sure that what a rename publishes is on the disk first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drop(folder: Path) -> None:
    """Remove a checkpoint; one that is half removed is not whole."""
    (folder / "state.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _cause(error: Exception, folder: Path) -> str:
    """torch and safetensors do not always say that the disk is full."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    full = folder.exists() and shutil.disk_usage(folder).free < FULL and "space" not in said
    return f"no space left on the device ({said})" if full else said
