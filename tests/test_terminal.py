"""What a person sees."""

import io

from rich.console import Console

from posttrain.terminal import Terminal


def shown() -> tuple[Terminal, io.StringIO]:
    terminal, written = Terminal(), io.StringIO()
    terminal.console, terminal.interactive = (
        Console(file=written, force_terminal=True, width=40, color_system=None),
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
