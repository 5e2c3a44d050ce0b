"""Checkpoints inside a stage: everything that a cut-off run needs to go on as if it had not been cut off."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `step` steps are done; `state` is what the loop keeps beside weights and optimiser."""

    folder: Path
    step: int
    state: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters by name, on the CPU."""
        return load_file(self.folder / "weights.safetensors")

    def optimiser(self) -> dict[str, Any]:
        """The optimiser's state."""
        state: dict[str, Any] = torch.load(self.folder / "optimiser.pt", map_location="cpu", weights_only=True)
        return state


class CheckpointStore:
    """The checkpoints of one stage, newest first. Each is written beside its place and renamed when it is whole."""

    def __init__(self, folder: Path, fingerprint: str, keep: int = 1) -> None:
        self.folder, self.fingerprint, self.keep = folder, fingerprint, keep

    def save(self, step: int, weights: dict[str, Tensor], optimiser: dict[str, Any], state: dict[str, Any]) -> None:
        """Write the checkpoint of `step` and drop those beyond `keep`.

        Raises `UserError` when it cannot be written (disk full); earlier checkpoints are untouched then.
        """
        target = self.folder / f"step-{step:08d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            save_file({name: t.contiguous() for name, t in weights.items()}, partial / "weights.safetensors")
            torch.save(optimiser, partial / "optimiser.pt")
            content = {"step": step, "fingerprint": self.fingerprint, "state": state}
            (partial / "state.json").write_text(json.dumps(content))
            for file in partial.iterdir():
                _flush(file)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            _flush(self.folder)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"cannot write checkpoint '{target}': {error}; earlier checkpoints are whole, "
                "make room and run the same command again"
            ) from error
        for old in self._whole()[self.keep :]:
            shutil.rmtree(old)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None.

        Raises `UserError` when it belongs to another recipe.
        """
        for folder in self._whole():
            content = json.loads((folder / "state.json").read_text())
            if content["fingerprint"] != self.fingerprint:
                raise UserError(
                    f"checkpoint '{folder}' was written by another recipe (or other data, or another start): "
                    "give another 'out' folder, set 'resume=false' to start over, or go back to that recipe"
                )
            return Checkpoint(folder, content["step"], content["state"])
        return None

    def clear(self) -> None:
        """Remove every checkpoint, half-written ones too."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _whole(self) -> list[Path]:
        found = [p for p in self.folder.glob("step-*") if p.suffix != ".partial" and (p / "state.json").is_file()]
        return sorted(found, reverse=True)


def _flush(path: Path) -> None:
    """Make sure that what a rename publishes is on the disk first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
