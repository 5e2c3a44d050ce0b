"""What a person sees."""

import io
import json

import pytest
from rich.console import Console

from posttrain.run import show_stage
from posttrain.terminal import Terminal


def shown(width: int = 40) -> tuple[Terminal, io.StringIO]:
    terminal, written = Terminal(), io.StringIO()
    terminal.console, terminal.interactive = (
        Console(file=written, force_terminal=True, width=width, color_system=None),
        True,
    )
    return terminal, written


def test_a_path_is_printed_as_it_is_and_never_broken() -> None:
    terminal, written = shown()
    path = "runs/[bold]a[/bold]/" + "b" * 60
    terminal.event("finished", f"report: {path}")
    assert written.getvalue() == f"report: {path}\n"


def test_what_goes_on_is_shown_also_inside_a_bar() -> None:
    terminal, written = shown()
    with terminal.bar("training [x]", 10), terminal.waiting("evaluating [y]"):
        pass
    assert "evaluating [y]" in written.getvalue()


def test_nothing_is_shown_of_what_goes_on_off_a_terminal(capsys) -> None:  # type: ignore[no-untyped-def]
    with Terminal(json_output=True).waiting("loading"):
        pass
    assert capsys.readouterr().out == ""


def test_a_part_of_a_score_may_have_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"kind": 0.5, "stage": 0.1, "name": 0.2, "message": 0.3, "seconds": 9.0, "accuracy": 0.7}
    show_stage(Terminal(), "test", "evaluate", 1.0, summary)
    row = json.loads(capsys.readouterr().out)
    assert (row["event"], row["stage"], row["kind"], row["seconds"]) == ("stage", "test", "evaluate", 1.0)
    assert (row["name"], row["message"], row["accuracy"]) == (0.2, 0.3, 0.7)


def test_a_finished_training_says_what_came_of_it() -> None:
    terminal, written = shown(width=200)
    summary = {"steps": 12, "loss": 0.25, "trained_tokens": 9000, "seconds": 3.0, "samples": 200}
    show_stage(terminal, "train", "train", 3.0, summary)
    assert "steps 12, loss 0.25, trained tokens 9,000, samples 200" in written.getvalue()
