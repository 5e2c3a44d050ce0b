"""What a person sees while something runs; off a terminal, one JSON object a line and nothing else."""

import json
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as List
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class Bar:
    """One progress bar. `advance` adds to what is done and to what the rate counts; `note` is shown behind it."""

    def __init__(self, progress: Progress | None, task: Any, unit: str) -> None:
        self._progress, self._task, self._unit, self._reached = progress, task, unit, False

    def advance(self, amount: float = 1, note: str = "") -> None:
        """`amount` more is done."""
        if self._progress is not None:
            self._progress.update(self._task, advance=amount, note=note)

    def reach(self, done: float, note: str = "") -> None:
        """So much is done in all. The first call may start anywhere: what an earlier run did counts for no rate."""
        if self._progress is not None and not self._reached:
            self._progress.reset(self._task, completed=int(done), unit=self._unit, note=note)
        elif self._progress is not None:
            self._progress.update(self._task, completed=done, note=note)
        self._reached = True


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """How much a second."""
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")


class Terminal:
    """Output of the command line. `json_output` asks for JSON lines even on a terminal; `quiet` for nothing at all."""

    def __init__(self, *, json_output: bool = False, quiet: bool = False) -> None:
        self.console = Console(highlight=False)
        self.interactive = self.console.is_terminal and not json_output and not quiet
        self.quiet = quiet

    def event(self, name: str, message: RenderableType, /, **fields: Any) -> None:
        """Something happened: a sentence or a renderable for a person, or its fields as JSON.

        A sentence is printed as it is: a path may look like rich's markup.
        """
        if self.interactive:
            self.console.print(
                Text(message) if isinstance(message, str) else message, soft_wrap=isinstance(message, str)
            )
        else:
            self.line({"event": name, **fields})

    def line(self, row: Mapping[str, Any]) -> None:
        """One JSON object on a line of its own."""
        if not self.quiet:
            sys.stdout.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            sys.stdout.flush()

    def table(self, title: str, columns: List[str], rows: List[Mapping[str, Any]], *, right: List[str] = ()) -> None:
        """Rows of named cells: a table of `columns` for a person, JSON lines otherwise. `right`: set flush right.

        The first column is never wrapped.
        """
        if not self.interactive:
            for row in rows:
                self.line(row)
            return
        table = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for place, column in enumerate(columns):
            table.add_column(column, justify="right" if column in right else "left", no_wrap=place == 0)
        for row in rows:
            table.add_row(*(Text(_cell(row.get(column))) for column in columns))
        self.console.print(table)

    @contextmanager
    def waiting(self, description: str) -> Iterator[None]:
        """Something whose end cannot be foreseen is going on; silent off a terminal."""
        if not self.interactive:
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4) as progress:
            progress.add_task(description, total=None)
            yield

    @contextmanager
    def bar(self, description: str, total: float | None, unit: str = "it") -> Iterator[Bar]:
        """A progress bar with count, rate and time left; silent off a terminal."""
        if not self.interactive:
            yield Bar(None, None, unit)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4) as progress:
            task = progress.add_task(description, total=total, unit=unit, note="")
            yield Bar(progress, task, unit)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def harmless(text: str) -> str:
    """Text from outside without what steers a terminal: control characters become their pictures, newlines stay."""
    return text.translate({**{code: chr(0x2400 + code) for code in range(32) if code != 10}, 127: "\u2421"})


def quiet_libraries(terminal: Terminal) -> None:
    """Third-party warnings and bars do not appear between ours; those of downloads stay."""
    import warnings

    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    bars = terminal.interactive and not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if bars:
        enable_progress_bars()
