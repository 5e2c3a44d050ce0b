"""An inspection on a terminal: trained tokens stand out, special tokens and newlines are visible."""

from collections.abc import Iterator

from rich.text import Text

from posttrain.inspection.samples import Inspection, Piece, Shown
from posttrain.reporting.formats import percent
from posttrain.terminal import Terminal, harmless

TRAINED, SPECIAL = "green reverse", "bold magenta"
"""Styles; reversed video stays where there are no colours."""

SHOWN_TOKENS = 1200
"""A longer sample loses its middle on a terminal (JSON has all of it)."""


def show(inspection: Inspection, terminal: Terminal) -> None:
    """Print an inspection: in colour for a person, as JSON lines otherwise."""
    if not terminal.interactive:
        for record in inspection.records():
            terminal.line(record)
        return
    console = terminal.console
    console.print(Text.assemble((inspection.stage, "bold"), f" ({inspection.kind} stage), data '{inspection.data}'"))
    for sentence in _sentences(inspection):
        console.print(Text(f"  {sentence}"))
    for sample in inspection.samples:
        console.print(_title(sample))
        console.print(painted(sample))
    if inspection.kind == "train":
        console.print(
            Text.assemble("\n", ("trained", TRAINED), "  not trained  ", ("<special>", SPECIAL), "  ⏎ newline")
        )
    for reason, rows in inspection.refused.items():
        console.print(Text(f"\nrefused: {rows} rows, {reason}", "yellow"))
        for example in inspection.examples.get(reason, [])[:3]:
            console.print(Text(f"  row {example.row} ({example.id}): {example.detail}"))
    for note in inspection.notes:
        console.print(Text.assemble(("note ", "yellow"), note))
    for warning in inspection.warnings:
        console.print(Text.assemble(("warning ", "bold red"), warning))


def _sentences(inspection: Inspection) -> list[str]:
    n = inspection.numbers
    lengths = f"mean length {n['mean_length']:,} tokens, longest {n['longest']:,} (sample {n['longest_sample']})"
    if inspection.kind != "train":
        room = f"with {n['max_new_tokens']:,} new tokens to fit into {n['context']:,}"
        return [f"{n['prompts']:,} prompts, {n['answers_each']} answers each", f"{lengths}, {room}"]
    return [
        f"{n['samples']:,} samples of {n['rows']:,} rows: {n['duplicates']:,} duplicates, {n['refused']:,} refused, "
        f"{n['truncated']:,} truncated",
        f"{n['tokens']:,} tokens, {n['trained_tokens']:,} of them trained ({percent(float(n['trained_share']))})",
        f"{lengths}, allowed {n['max_length']:,} of the {n['context']:,} that the model reads",
        f"{n['ended_turns']:,} of {n['trained_turns']:,} trained turns end with their end token, {n['end_tokens']}",
    ]


def _title(sample: Shown) -> Text:
    trained = f", {sum(sample.trained)} trained" if any(sample.trained) else ""
    answer = "" if sample.answer is None else f", right answer: {_visible(sample.answer)}"
    return Text.assemble(
        "\n",
        (f"sample {sample.number}{', ' + sample.side if sample.side else ''}", "bold"),
        (f"  {sample.sample_id}, {len(sample.ids)} tokens{trained}{answer}", "dim"),
    )


def painted(sample: Shown) -> Text:
    """The sample as text in which trained tokens, special tokens and newlines can be told from the rest."""
    text = Text()
    for piece in _without_middle(sample):
        style = " ".join(part for part, holds in ((SPECIAL, piece.special), (TRAINED, piece.trained)) if holds)
        text.append(_visible(piece.text), style or None)
    return text


def _without_middle(sample: Shown) -> Iterator[Piece]:
    """The pieces; of a long sample those at its two ends, for both tell something: the question and the end of turn."""
    characters = sum(len(piece.text) for piece in sample.pieces)
    kept = 4 * SHOWN_TOKENS
    if len(sample.ids) <= SHOWN_TOKENS or characters <= kept:
        yield from sample.pieces
        return
    place = 0
    for piece in sample.pieces:
        start, end = kept // 2 - place, characters - kept // 2 - place
        place += len(piece.text)
        head, tail = piece.text[: max(0, start)], piece.text[max(0, start, end) :]
        gap = f" … {characters - kept:,} characters left out … " if 0 < start <= len(piece.text) else ""
        if head or gap or tail:
            yield Piece(f"{head}{gap}{tail}", piece.trained, piece.special)


def _visible(text: str) -> str:
    return harmless(text).replace("\n", "⏎\n")
