"""A run: a recipe, stage by stage, in a folder that says everything about it and can be cut off at any moment."""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from posttrain.errors import UserError
from posttrain.manifest import Manifest
from posttrain.recipe import Recipe
from posttrain.reporting import write_report
from posttrain.reporting.formats import duration, is_number, measure
from posttrain.stages import PLAN, RUN, Context, Plan
from posttrain.terminal import Terminal
from posttrain.training.journal import Journal, check_trackers
from posttrain.training.loop import Interrupted
from posttrain.training.ranks import Ranks


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
    plans = _plan(context)
    Manifest.open(context)
    return plans


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
    plans = _plan(context)
    manifest = Manifest.open(context)
    if ranks.is_main:
        show_plan(context.terminal, recipe, plans)
    manifest.start()
    context.journal = Journal(context.folder, active=ranks.is_main, trackers=recipe.trackers)
    try:
        with _interruptible(context):
            for name in recipe.stages:
                if any(ranks.gather(context.should_stop())):
                    raise Interrupted
                _run_stage(context, manifest, name)
    except BaseException as error:
        _leave(context, manifest, error)
        raise
    context.journal.close()
    manifest.finish("finished")
    if ranks.is_main:
        write_report(context.folder)
    return Outcome(context.folder, {name: manifest.stages[name]["summary"] for name in recipe.stages})


def in_its_own_folder(recipe: Recipe, terminal: Terminal) -> Recipe:
    """The recipe with a run folder for its model, data and settings alone: asked twice, the second call finds it."""
    stage = Context(recipe, Ranks(), terminal).stage_fingerprint(next(iter(recipe.stages)))
    model = Path(recipe.model.path).name
    return recipe.model_copy(update={"out": f"runs/eval/{model}-{stage[:8]}"})


def _leave(context: Context, manifest: Manifest, error: BaseException) -> None:
    """Write down how a run ended that did not finish; what fails on the way (a full disk) must not hide the cause."""
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    with suppress(Exception):
        manifest.finish("interrupted" if stopped else "failed", None if stopped else _cause(error))
    with suppress(Exception):
        context.journal.close()
    with suppress(Exception):
        if context.ranks.is_main:
            write_report(context.folder)


def _run_stage(context: Context, manifest: Manifest, name: str) -> None:
    stage = context.recipe.stages[name]
    fingerprint = context.stage_fingerprint(name)
    entry = manifest.stages[name]
    if entry.get("status") == "finished" and entry.get("fingerprint") == fingerprint:
        context.terminal.event("skipped", f"[dim]{escape(name)}: done before, skipped[/dim]", stage=name)
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
    terminal.console.print(Text.assemble((recipe.name, "bold"), "  ", recipe.description, f"\n→ {recipe.folder}"))
    grid = Table.grid(padding=(0, 2))
    for name, found in plans.items():
        grid.add_row(Text(f"  {name}", "bold"), Text(recipe.stages[name].kind, "dim"), _numbers(found.numbers))
        for note in found.notes:
            grid.add_row("", Text("note", "yellow"), Text(note))
    terminal.console.print(grid)


def show_stage(terminal: Terminal, name: str, kind: str, seconds: float, summary: dict[str, Any]) -> None:
    """One line for a finished stage."""
    rest = {key: value for key, value in summary.items() if key != "seconds"}
    shown = {key: value for key, value in rest.items() if not key.endswith(("_low", "_high"))}
    line = Table.grid(padding=(0, 2))
    line.add_row(
        Text("✓", "green"), Text(name, "bold"), Text(duration(seconds)), _numbers(dict(islice(shown.items(), 8)))
    )
    terminal.event("stage", line, stage=name, kind=kind, seconds=round(seconds, 3), **rest)


def _numbers(values: Mapping[str, Any]) -> Text:
    """`steps 250, samples 4,000`: what is there and not 0; text from outside is never read as markup."""
    shown = {key: measure(key, value) if is_number(value) else str(value) for key, value in values.items() if value}
    return Text(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items()))


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
