"""A run: a recipe, stage by stage, in a folder that says everything about it and can be cut off at any moment."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.errors import UserError
from posttrain.manifest import Manifest, check_place
from posttrain.policy import load_tokenizer
from posttrain.recipe import Recipe
from posttrain.reporting import write_report
from posttrain.reporting.formats import duration, is_number, measure
from posttrain.stages import PLAN, RUN, Context, Plan
from posttrain.stages.answers.kept_answers import kept_path
from posttrain.stages.context import data_of, models_of
from posttrain.terminal import Terminal
from posttrain.training.journal import Journal
from posttrain.training.loop import Interrupted
from posttrain.training.ranks import Ranks
from posttrain.training.trackers import check_trackers

ONE_CTRL_C = 1.0
"""Seconds: torchrun passes a Ctrl-C on to processes that the terminal has sent it to already."""


_EVALUATED = (
    "accuracy",
    "problems",
    "samples",
    "perplexity",
    "mean_length",
    "truncated",
    "format_validity",
    "errors",
    "tokens_per_second",
)
"""What the line of a finished evaluation shows; the table at the end and the report have the rest."""


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
    with terminal.waiting(f"checking {recipe.name}"):
        plans = _plan(context)
        Manifest.open(context)
    return plans


def _plan(context: Context) -> dict[str, Plan]:
    recipe = context.recipe
    if not recipe.stages:
        raise UserError(f"recipe '{recipe.name}' has no stages")
    check_trackers(recipe.trackers)
    check_place(context.folder)
    _check_order(context)
    plans = {}
    for name, stage in recipe.stages.items():
        try:
            plans[name] = PLAN[stage.kind](context, name, stage)
        except UserError as error:
            raise UserError(f"stage '{name}': {error}") from error.__cause__
    return plans


def _check_order(context: Context) -> None:
    """A stage may only read what is there before it."""
    recipe = context.recipe
    seen: set[str] = set()
    for name, stage in recipe.stages.items():
        data = data_of(stage)
        pending = [other for key in data if key in recipe.data for other in sorted(context.pending(recipe.data[key]))]
        read = [other for other in models_of(stage) if other not in (*recipe.models, "base")]
        read += [other for other in data if other not in recipe.data]
        for other in (*read, *pending):
            if other in recipe.stages and other not in seen:
                raise UserError(f"stage '{name}' reads '{other}', which runs only after it: move it up")
        writes_model, writes_data = stage.kind in ("train", "merge"), stage.kind in ("generate", "curate")
        if (writes_data and name in recipe.data) or (writes_model and name in (*recipe.models, "base")):
            what = "data set" if writes_data else "model"
            raise UserError(f"stage '{name}' writes a {what}, but the recipe has one of this name; give it another")
        seen.add(name)


def run(recipe: Recipe, terminal: Terminal) -> Outcome:
    """Run a recipe to its end, or from where an earlier call of the same recipe was cut off.

    Stages whose output is there already are skipped. Raises `UserError` before any compute for bad input and for a run
    folder of another recipe; `Interrupted` after Ctrl-C, with everything saved.
    """
    ranks = Ranks()
    context = Context(recipe, ranks, terminal if ranks.is_main else Terminal(quiet=True))
    with context.terminal.waiting(f"checking {recipe.name}"):
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
    load_tokenizer(recipe.model.path)  # of a hub model, so that its commit is known already
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
        _clear_checkpoints(context, name)
        context.terminal.event("skipped", Text(f"{name}: done before, skipped", "dim"), stage=name)
        return
    context.journal.begin_stage(name)
    manifest.update(name, status="running", fingerprint=fingerprint)
    before, started = float(entry.get("seconds", 0.0)), time.perf_counter()
    status, summary = "failed", dict[str, Any]()
    try:
        summary = RUN[stage.kind](context, name, stage)
        status = "finished"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        # A call that was killed did not come here, but its checkpoints say how long it trained.
        seconds = max(before + time.perf_counter() - started, summary.get("seconds", 0.0))
        manifest.update(name, status=status, seconds=round(seconds, 3), summary=summary)
    _clear_checkpoints(context, name)
    show_stage(context.terminal, name, stage.kind, seconds, manifest.stages[name]["summary"])


def _clear_checkpoints(context: Context, name: str) -> None:
    """They are needed until the manifest says that the stage is finished, and no longer; so are answers."""
    if context.ranks.is_main:
        folder = context.folder / "checkpoints"
        shutil.rmtree(folder / name, ignore_errors=True)
        kept_path(context.folder, name).unlink(missing_ok=True)
        with suppress(OSError):  # other stages' are still there
            folder.rmdir()


@contextmanager
def _interruptible(context: Context) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, which schedulers send) lets the step finish and saves; the second stops at once."""
    asked: float | None = None

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked is None:
            asked = time.monotonic()
            context.terminal.event("interrupting", "\nstopping after this step and saving (Ctrl-C again: at once)")
        elif time.monotonic() - asked > ONE_CTRL_C:
            raise KeyboardInterrupt

    context.should_stop = lambda: asked is not None
    if threading.current_thread() is not threading.main_thread():  # whoever runs us there handles signals
        yield
        return
    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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
        grid.add_row(Text(f"  {name}", "bold"), Text(recipe.stages[name].kind, "dim"), _numbers(_there(found.numbers)))
        for note in found.notes:
            grid.add_row("", Text("note", "yellow"), Text(note))
    terminal.console.print(grid)


def _there(values: Mapping[str, Any]) -> dict[str, Any]:
    """A plan need not say what there is none of: duplicates 0, refused 0."""
    return {key: value for key, value in values.items() if value}


def show_stage(terminal: Terminal, name: str, kind: str, seconds: float, summary: dict[str, Any]) -> None:
    """One line for a finished stage."""
    rest = {key: value for key, value in summary.items() if key != "seconds"}
    named = _EVALUATED if kind == "evaluate" else tuple(islice(rest, 8))
    shown = {key: rest[key] for key in named if key in rest}
    line = Table.grid(padding=(0, 2))
    line.add_row(Text("✓", "green"), Text(name, "bold"), Text(duration(seconds)), _numbers(shown))
    own = {"stage": name, "kind": kind, "seconds": round(seconds, 3)}
    terminal.event("stage", line, **(own | rest | own))  # a verifier's part may have any name


def _numbers(values: Mapping[str, Any]) -> Text:
    """`steps 250, samples 4,000`; text from outside is never read as markup."""
    shown = {key: measure(key, value) if is_number(value) else str(value) for key, value in values.items()}
    text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())
    return Text(text.replace("\u202f", ""))  # the narrow space before % would be a place to break the line


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
