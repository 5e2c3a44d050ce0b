"""The command `posttrain verifiers`."""

from typing import TYPE_CHECKING, Annotated

import typer

from posttrain.terminal import Terminal, harmless

if TYPE_CHECKING:
    from posttrain.evaluation.verifiers import Judgement


def verifiers(
    show: Annotated[str | None, typer.Option(metavar="NAME", help="List what this verifier misjudges.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="JSON lines, also on a terminal.")] = False,
) -> None:
    """How often each verifier is wrong, on answers labelled by hand: right ones refused, wrong ones accepted."""
    from posttrain.evaluation.verifiers import VERIFIERS, judge

    terminal = Terminal(json_output=json_output)
    if show is not None:
        return _show(judge(show), terminal)
    found = [judge(name) for name in VERIFIERS]
    rows = [_cells(one) if terminal.interactive else one.to_json() for one in found]
    columns = ["verifier", "right", "false negatives", "wrong", "false positives"]
    terminal.table("", columns, rows, right=columns[1:])
    return None


def _show(found: "Judgement", terminal: Terminal) -> None:
    rows = [
        {
            "error": one.error,
            "kind": one.answer.kind,
            "reason": one.reason,
            "gold": one.answer.sample.answer,
            "text": harmless(one.answer.text) if terminal.interactive else one.answer.text,
        }
        for one in found.misjudged
    ]
    terminal.table("", ["error", "kind", "reason", "gold", "text"], rows)


def _cells(found: "Judgement") -> dict[str, object]:
    """`7 = 3.4 % (1.6 to 6.8)`."""
    cells: dict[str, object] = {"verifier": found.name}
    for right, answers, errors in ((True, "right", "false negatives"), (False, "wrong", "false positives")):
        rate = found.rate(right)
        cells[answers] = sum(one.answer.right == right for one in found.judged)
        wrong = sum(one.answer.right == right for one in found.misjudged)
        cells[errors] = f"{wrong} = {100 * rate.estimate:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
    return cells
