"""`manifest.json` of a run folder: the recipe, what it ran on, and what became of each stage."""

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import torch

from posttrain.errors import UserError
from posttrain.recipe import Recipe, changed_fields, check_recipe, to_yaml
from posttrain.recipe.yaml_text import inline
from posttrain.stages import Context
from posttrain.stages.files import write_atomically

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("posttrain", "torch", "transformers", "accelerate", "peft", "datasets", "numpy")


LOCK = ".lock"
"""Held by the process that runs in a folder."""


def check_place(folder: Path) -> None:
    """Raises `UserError` where no run folder can be: behind a file, or where nothing can be written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the run folder '{folder}' is a file; give another folder with out=...")
    above = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(
            f"the run folder '{folder}' cannot be written, '{above}': {error.strerror or error}; give another folder "
            "with out=..."
        ) from error


class Manifest:
    """`manifest.json`: the recipe, what it ran on, and what became of each stage. Written whole at every change."""

    def __init__(self, context: Context, content: dict[str, Any]) -> None:
        self.context, self.content = context, content
        self._lock: TextIO | None = None

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage name -> kind, status, seconds, fingerprint, summary."""
        stages: dict[str, dict[str, Any]] = self.content["stages"]
        return stages

    @classmethod
    def open(cls, context: Context) -> "Manifest":
        """The manifest of the run folder, or a new one; nothing is written yet.

        Raises `UserError` when the folder holds files that are no run, or a run of another recipe; with `resume: false`
        a run is moved aside later, when the new one starts.
        """
        recipe, folder = context.recipe, context.folder
        found = _read_manifest(folder) if recipe.resume else None
        if not (folder / "manifest.json").is_file() and folder.exists() and not _is_blank(folder):
            raise UserError(f"folder '{folder}' is not empty and holds no run; give another folder with out=...")
        if not recipe.resume and Path.cwd().is_relative_to(folder.resolve()):
            raise UserError(
                f"resume=false moves the run folder '{folder}' aside, but it is worked in: go elsewhere first"
            )
        entries = {}
        for name, stage in recipe.stages.items():
            old = (found or {}).get("stages", {}).get(name)
            new: dict[str, Any] = {"kind": stage.kind, "status": "waiting", "seconds": 0.0, "summary": {}}
            if old and old.get("fingerprint") not in (None, context.stage_fingerprint(name)):
                if old.get("status") == "finished" or (folder / "checkpoints" / name).exists():
                    raise UserError(_foreign(folder, name, found or {}, recipe))
                old = new  # it left nothing to go on from
            entries[name] = old or new
        content = {
            "name": recipe.name,
            "status": "running",
            "error": None,
            "created": (found or {}).get("created", _now()),
            "updated": _now(),
            "seed": recipe.seed,
            "recipe": recipe.model_dump(mode="json"),
            "changed": changed_fields(recipe),
            "versions": {name: _version(name) for name in PACKAGES},
            "machine": machine(),
            "git_commit": _git_commit(),
            "command": shlex.join(["posttrain", *sys.argv[1:]]),
            "stages": entries,
        }
        return cls(context, content)

    def start(self) -> None:
        """Publish the manifest and the resolved recipe.

        With `resume: false` an earlier run in the folder is moved aside first, never overwritten. Raises `UserError`
        when another process runs in the folder; `finish` lets others in again.
        """
        self.context.ranks.on_main(self._enter)
        self._write()
        if self.context.ranks.is_main:
            write_atomically(self.context, "recipe.yaml", to_yaml(self.context.recipe))

    def _enter(self) -> None:
        folder = self.context.folder
        self._lock = _locked(folder)
        if not self.context.recipe.resume and (folder / "manifest.json").is_file():
            folder.rename(_free_name(folder))
            self._lock.close()
            self._lock = _locked(folder)

    def update(self, stage: str, **fields: Any) -> None:
        """Change a stage's entry."""
        self.stages[stage] |= fields
        self._write()

    def finish(self, status: str, error: str | None = None) -> None:
        """The run has ended."""
        self.content |= {"status": status, "error": error}
        try:
            self._write()
        finally:
            if self._lock is not None:
                self._lock.close()

    def _write(self) -> None:
        if not self.context.ranks.is_main:
            return
        self.content["updated"] = _now()
        write_atomically(self.context, "manifest.json", json.dumps(self.content, indent=1, ensure_ascii=False))


def _is_blank(folder: Path) -> bool:
    """Empty, but for what a run left that was killed while it wrote its first file."""
    return all(path.name in ("manifest.json.partial", LOCK) for path in folder.iterdir())


def _locked(folder: Path) -> TextIO:
    """The open lock file of a run folder, which is free again when the file is closed or the process has ended."""
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"another process is running in folder '{folder}': wait until it has ended, or give another with out=..."
        ) from None
    except OSError:  # a file system without locks
        pass
    return file


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"'{path}' is damaged; start over with resume=false (the old run is moved aside)") from None
    return content


def _foreign(folder: Path, stage: str, found: dict[str, Any], recipe: Recipe) -> str:
    """Say how the folder's recipe differs."""
    try:
        before = changed_fields(check_recipe(found.get("recipe", {})))
    except UserError:
        before = {}
    now = changed_fields(recipe)
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    differ = "; ".join(f"{key}: {_value(before, key)} there, {_value(now, key)} here" for key in keys[:5])
    return (
        f"run folder '{folder}' holds stage '{stage}' of another recipe or of other inputs"
        f"{f' ({differ})' if differ else ' (the data or the model have changed)'}: give another folder with out=..., "
        "or resume=false to start over (the old run is moved aside, not deleted)"
    )


def _value(changed: dict[str, list[Any]], key: str) -> str:
    return inline(changed[key][1]) if key in changed else "default"


def _free_name(folder: Path) -> Path:
    number = 1
    while (moved := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return moved


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def machine() -> dict[str, Any]:
    """What the run ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout that the package is installed from, where it is one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
