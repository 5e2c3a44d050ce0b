"""A run: a recipe, stage by stage, in a folder that says everything about it and can be cut off at any moment."""

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from posttrain.errors import UserError
from posttrain.recipe import Recipe, changed_fields, check_recipe, to_yaml
from posttrain.reporting import write_report
from posttrain.stages import PLAN, RUN, Context, Plan
from posttrain.terminal import Terminal
from posttrain.training.journal import Journal, check_trackers
from posttrain.training.loop import Interrupted
from posttrain.training.ranks import Ranks

PACKAGES = ("posttrain", "torch", "transformers", "accelerate", "peft", "datasets", "numpy")


@dataclass(frozen=True)
class Outcome:
    """What a run left: its folder, and the summary of every stage."""

    folder: Path
    stages: dict[str, dict[str, Any]]


def plan(recipe: Recipe, terminal: Terminal, ranks: Ranks | None = None) -> dict[str, Plan]:
    """Check a whole recipe without computing: files, columns, templates, lengths, names, trackers, the run folder.

    Data are tokenised (and cached). Raises `UserError` for the first thing that is wrong.
    """
    context = Context(recipe, ranks or Ranks(), terminal)
    return _plan(context)


def _plan(context: Context) -> dict[str, Plan]:
    recipe = context.recipe
    if not recipe.stages:
        raise UserError(f"recipe '{recipe.name}' has no stages")
    check_trackers(recipe.trackers)
    _check_order(recipe)
    plans = {}
    for name, stage in recipe.stages.items():
        try:
            plans[name] = PLAN[stage.kind](context, name, stage)
        except UserError as error:
            raise UserError(f"stage '{name}': {error}") from error.__cause__
    return plans


def _check_order(recipe: Recipe) -> None:
    """A stage may only read what is there before it."""
    seen: set[str] = set()
    for name, stage in recipe.stages.items():
        read = [getattr(stage, field, None) for field in ("init_from", "model", "reference", "data")]
        read += getattr(stage, "models", [])
        for other in read:
            known = other == "base" or other in recipe.models or other in recipe.data
            if other in recipe.stages and other not in seen and not known:
                raise UserError(f"stage '{name}' reads '{other}', which runs only after it: move it up")
        if name in recipe.data or name in recipe.models or name == "base":
            raise UserError(f"stage '{name}' has the name of a model or data set of the recipe; give it another")
        seen.add(name)


def run(recipe: Recipe, terminal: Terminal) -> Outcome:
    """Run a recipe to its end, or from where an earlier call of the same recipe was cut off.

    Stages whose output is there already are skipped. Raises `UserError` before any compute for bad input and for a run
    folder of another recipe; `Interrupted` after Ctrl-C, with everything saved.
    """
    ranks = Ranks()
    context = Context(recipe, ranks, terminal if ranks.is_main else Terminal(quiet=True))
    manifest = Manifest.open(context)
    plans = _plan(context)
    if ranks.is_main:
        show_plan(context.terminal, recipe, plans)
    context.journal = Journal(context.folder, active=ranks.is_main, trackers=recipe.trackers)
    manifest.start()
    try:
        with _interruptible(context):
            for name in recipe.stages:
                _run_stage(context, manifest, name)
        manifest.finish("finished")
    except Interrupted:
        manifest.finish("interrupted")
        raise
    except BaseException as error:
        manifest.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", _cause(error))
        raise
    finally:
        context.journal.close()
        if ranks.is_main:
            write_report(context.folder)
    return Outcome(context.folder, {name: manifest.stages[name]["summary"] for name in recipe.stages})


def _run_stage(context: Context, manifest: "Manifest", name: str) -> None:
    stage = context.recipe.stages[name]
    fingerprint = context.stage_fingerprint(name)
    entry = manifest.stages[name]
    if entry.get("status") == "finished" and entry.get("fingerprint") == fingerprint:
        context.terminal.event("skipped", f"[dim]{name}: done before, skipped[/dim]", stage=name)
        return
    if "journal" in entry:
        context.journal.rewind(entry["journal"])
    manifest.update(
        name, status="running", fingerprint=fingerprint, journal=entry.get("journal", context.journal.position())
    )
    before, started = float(entry.get("seconds", 0.0)), time.perf_counter()
    status = "failed"
    try:
        summary = RUN[stage.kind](context, name, stage)
        manifest.update(name, status="finished", summary=summary)
        status = "finished"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        seconds = before + time.perf_counter() - started
        manifest.update(name, status=status, seconds=round(seconds, 3))
    show_stage(context.terminal, name, stage.kind, seconds, manifest.stages[name]["summary"])


class Manifest:
    """`manifest.json`: the recipe, what it ran on, and what became of each stage. Written whole at every change."""

    def __init__(self, context: Context, content: dict[str, Any]) -> None:
        self.context, self.content = context, content

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage name -> kind, status, seconds, fingerprint, summary."""
        stages: dict[str, dict[str, Any]] = self.content["stages"]
        return stages

    @classmethod
    def open(cls, context: Context) -> "Manifest":
        """The manifest of the run folder, or a new one.

        With `resume: false` an earlier run in the folder is moved aside, never overwritten. Raises `UserError` when the
        folder holds a run of another recipe, or files that are no run.
        """
        recipe, folder = context.recipe, context.folder
        if not recipe.resume and folder.exists() and context.ranks.is_main:
            folder.rename(_free_name(folder))
        context.ranks.wait()
        found = _read_manifest(folder)
        if found is None and folder.exists() and any(folder.iterdir()):
            raise UserError(f"folder '{folder}' is not empty and holds no run; give another folder with out=...")
        entries = {}
        for name, stage in recipe.stages.items():
            old = (found or {}).get("stages", {}).get(name)
            if old and old.get("fingerprint") not in (None, context.stage_fingerprint(name)):
                raise UserError(_foreign(folder, name, found or {}, recipe))
            entries[name] = old or {"kind": stage.kind, "status": "waiting", "seconds": 0.0, "summary": {}}
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
        """Publish the manifest and the resolved recipe."""
        self._write()
        if self.context.ranks.is_main:
            (self.context.folder / "recipe.yaml").write_text(to_yaml(self.context.recipe), encoding="utf-8")

    def update(self, stage: str, **fields: Any) -> None:
        """Change a stage's entry."""
        self.stages[stage] |= fields
        self._write()

    def finish(self, status: str, error: str | None = None) -> None:
        """The run has ended."""
        self.content |= {"status": status, "error": error}
        self._write()

    def _write(self) -> None:
        if not self.context.ranks.is_main:
            return
        self.content["updated"] = _now()
        path = self.context.folder / "manifest.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name("manifest.json.partial")
            partial.write_text(json.dumps(self.content, indent=1, ensure_ascii=False), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror or error}") from error


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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


def _value(changed: dict[str, list[Any]], key: str) -> Any:
    return changed[key][1] if key in changed else "default"


def _free_name(folder: Path) -> Path:
    number = 1
    while (moved := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return moved


@contextmanager
def _interruptible(context: Context) -> Iterator[None]:
    """The first Ctrl-C lets the step finish and saves; the second stops at once."""
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        context.terminal.event("interrupting", "\nstopping after this step and saving (Ctrl-C again: at once)")

    context.should_stop = lambda: asked
    try:
        old = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
    if asked:
        raise Interrupted


def show_plan(terminal: Terminal, recipe: Recipe, plans: dict[str, Plan]) -> None:
    """The derived numbers, before the start."""
    if not terminal.interactive:
        terminal.line(
            {
                "event": "plan",
                "recipe": recipe.name,
                "out": recipe.folder,
                "stages": {name: {**plan.numbers, "notes": plan.notes} for name, plan in plans.items()},
            }
        )
        return
    terminal.console.print(f"[bold]{recipe.name}[/bold]  {recipe.description}\n→ {recipe.folder}")
    for name, found in plans.items():
        numbers = ", ".join(
            f"{key.replace('_', ' ')} {_number(value)}" for key, value in found.numbers.items() if value
        )
        terminal.console.print(f"  [bold]{name}[/bold] [dim]({recipe.stages[name].kind})[/dim] {numbers}")
        for note in found.notes:
            terminal.console.print(f"    [yellow]note[/yellow] {note}")


def show_stage(terminal: Terminal, name: str, kind: str, seconds: float, summary: dict[str, Any]) -> None:
    """One line for a finished stage."""
    shown = ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in list(summary.items())[:8])
    message = f"[green]✓[/green] [bold]{name}[/bold] {seconds:.1f} s  {shown}"
    terminal.event("stage", message, stage=name, kind=kind, seconds=round(seconds, 3), **_without(summary, "seconds"))


def _without(summary: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != key}


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


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
