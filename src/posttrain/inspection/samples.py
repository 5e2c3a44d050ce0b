"""Samples as the tokens that a stage will see, and which of them are trained.

No weights are loaded: a tokenizer, a template and the recipe's data are all that it takes.
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from posttrain.data import Sequence
from posttrain.data.rendering import OVERLONG, Rendering, render_prompt, turn_end_tokens
from posttrain.data.token_store import EncodedDataset, Example
from posttrain.errors import UserError, nearest
from posttrain.generation.stopping import decode
from posttrain.objectives import build_objective
from posttrain.policy import load_tokenizer
from posttrain.recipe import Evaluate, Generate, Recipe, Train
from posttrain.stages import Context
from posttrain.stages.answers.asking import questions
from posttrain.stages.encoded import encoded, rendering_of
from posttrain.stages.shape import Shape

_WINDOW = 8
"""Tokens decoded before a piece of text, so that it reads as it does behind them (leading spaces, split characters)."""


EXAMPLES = 20
"""Refused rows that are shown of each reason."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of a kind: their `text`, whether they are `trained`, whether each is a `special` token."""

    text: str
    trained: bool
    special: bool


@dataclass(frozen=True)
class Shown:
    """One rendered sample. `ids[T]`, `tokens[T]` as the vocabulary writes them, `trained[T]`; `pieces` read as text.

    `number` counts from 1 in the stage's data. `answer`: what a verifier compares with. `side`: chosen or rejected, of
    a preference pair.
    """

    number: int
    sample_id: str
    ids: list[int]
    tokens: list[str]
    trained: list[bool]
    pieces: list[Piece]
    answer: str | None = None
    side: str = ""


@dataclass(frozen=True)
class Inspection:
    """A stage's data as it will be seen. `numbers` are counts over all of it, `samples` a few, evenly spread.

    `refused`: reason -> rows, with some of them in `examples`. `warnings`: what would make the run fail or learn wrong.
    """

    stage: str
    kind: str
    data: str
    numbers: dict[str, int | float | str]
    samples: list[Shown]
    refused: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def records(self) -> Iterator[dict[str, Any]]:
        """Everything, as one JSON object for the whole, one for each reason of refusal, and one for each sample."""
        head = {"event": "inspection", "stage": self.stage, "kind": self.kind, "data": self.data}
        yield {**head, **self.numbers, "notes": self.notes, "warnings": self.warnings}
        for reason, count in self.refused.items():
            rows = [asdict(example) for example in self.examples.get(reason, [])[:EXAMPLES]]
            yield {"event": "refused", "reason": reason, "rows": count, "examples": rows}
        for sample in self.samples:
            yield {"event": "sample", **asdict(sample)}


def inspected_stage(recipe: Recipe, name: str | None) -> str:
    """The stage to look at: `name`, or the first train stage, else the first that asks a model something.

    Raises `UserError` for an unknown stage and for one that renders nothing.
    """
    kinds = {stage: fields.kind for stage, fields in recipe.stages.items()}
    if name is not None and name not in kinds:
        raise UserError(f"recipe '{recipe.name}' has no stage '{name}': {nearest(name, kinds)}")
    rendering = [stage for kind in ("train", "evaluate", "generate") for stage in kinds if kinds[stage] == kind]
    if not rendering:
        raise UserError(f"recipe '{recipe.name}' has no stage that reads data as tokens: {', '.join(kinds) or 'none'}")
    if name is not None and name not in rendering:
        known = ", ".join(rendering)
        raise UserError(f"stage '{name}' is a {kinds[name]} stage and renders nothing; stages that do: {known}")
    return name or rendering[0]


def inspect(context: Context, name: str, count: int) -> Inspection:
    """Render the data of stage `name` as the stage will, and pick `count` samples to show."""
    stage = context.recipe.stages[name]
    if isinstance(stage, Train):
        return _inspect_training(context, name, stage, count)
    assert isinstance(stage, Evaluate | Generate)
    return _inspect_questions(context, name, stage, count)


# --- a train stage ----------------------------------------------------------------------------------------------------


def _inspect_training(context: Context, name: str, stage: Train, count: int) -> Inspection:
    data = context.data(stage.data)
    origin = context.origin(stage.init_from, with_weights=False)
    tokenizer, shape = load_tokenizer(origin.path), Shape.of(origin)
    rendering = rendering_of(stage, shape.model)
    pairs = build_objective(stage.objective).needs_pairs
    dataset = encoded(context, stage.data, tokenizer, rendering, pairs=pairs, max_refused=1.0)
    report = dataset.report
    ends = turn_end_tokens(tokenizer, rendering)
    with context.terminal.waiting("checking the ends of turns"):
        turns, ended = _ended_turns(dataset, ends)
    numbers: dict[str, int | float | str] = {
        **_size(dataset),
        "max_length": rendering.max_length,
        "context": shape.context,
        "trained_turns": turns,
        "ended_turns": ended,
        "end_tokens": " ".join(sorted(tokenizer.convert_ids_to_tokens(sorted(ends)))),
    }
    return Inspection(
        stage=name,
        kind=stage.kind,
        data=stage.data,
        numbers=numbers,
        samples=[shown for place in _spread(report.kept, count) for shown in _sides(dataset, place, tokenizer)],
        refused=report.refused,
        examples=report.examples,
        notes=tuple(report.notes),
        warnings=_warnings(dataset, turns - ended, data.max_refused),
    )


def _ended_turns(dataset: EncodedDataset, ends: Collection[int]) -> tuple[int, int]:
    """How many turns are trained, and how many of them end with an end-of-turn token."""
    turns, ended = 0, 0
    for last in dataset.last_trained_tokens():
        turns += len(last)
        ended += int(np.isin(last, list(ends)).sum())
    return turns, ended


def _size(dataset: EncodedDataset) -> dict[str, int | float | str]:
    report, longest = dataset.report, int(dataset.lengths.argmax())
    return {
        "rows": report.rows,
        "samples": report.kept,
        "duplicates": report.duplicates,
        "refused": sum(report.refused.values()),
        "truncated": report.truncated,
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "trained_share": round(report.trained_tokens / report.tokens, 4),
        "mean_length": round(report.tokens / len(dataset), 1),
        "longest": int(dataset.lengths[longest]),
        "longest_sample": dataset.sample_ids[longest].decode(),
    }


def _warnings(dataset: EncodedDataset, not_ended: int, max_refused: float) -> tuple[str, ...]:
    report, found = dataset.report, []
    if not_ended:
        why = " (they were cut at max_length)" if report.truncated else ""
        found.append(f"{not_ended} trained turns do not end with an end-of-turn token{why}: they teach not to stop")
    refused = sum(count for reason, count in report.refused.items() if reason != OVERLONG)
    if refused > max_refused * report.rows:
        share = refused / report.rows
        found.append(f"{share:.1%} of the rows are refused; a run stops above {max_refused:.1%} (max_refused)")
    return tuple(found)


# --- a stage that asks questions --------------------------------------------------------------------------------------


def _inspect_questions(context: Context, name: str, stage: Evaluate | Generate, count: int) -> Inspection:
    origin = context.origin(stage.model, with_weights=False)
    tokenizer, shape = load_tokenizer(origin.path), Shape.of(origin)
    samples = questions(context, stage.data)
    rendering = Rendering(shape.context, template=stage.template, template_options=stage.template_options)
    prompts = []
    with context.terminal.bar("rendering prompts", len(samples), "prompts") as bar:
        for sample in samples:
            prompts.append(render_prompt(sample, tokenizer, rendering))
            bar.advance()
    lengths = [len(prompt) for prompt in prompts]
    longest = int(np.argmax(lengths))
    over = sum(length + stage.max_new_tokens > shape.context for length in lengths)
    warning = f"{over} prompts leave no room for max_new_tokens={stage.max_new_tokens} in {shape.context} tokens"
    shown = []
    for index in _spread(len(samples), count):
        tokens = prompts[index]
        nothing = np.zeros(len(tokens), dtype=np.bool_)
        sequence = Sequence(tokens, nothing, np.zeros(len(tokens), dtype=np.uint8), samples[index].id)
        shown.append(_shown(index, sequence, tokenizer, samples[index].answer))
    return Inspection(
        stage=name,
        kind=stage.kind,
        data=stage.data,
        numbers={
            "prompts": len(samples),
            "answers_each": stage.n,
            "mean_length": round(sum(lengths) / len(lengths), 1),
            "longest": lengths[longest],
            "longest_sample": samples[longest].id,
            "max_new_tokens": stage.max_new_tokens,
            "context": shape.context,
        },
        samples=shown,
        warnings=(warning,) if over else (),
    )


# --- tokens to text ---------------------------------------------------------------------------------------------------


def _spread(length: int, count: int) -> list[int]:
    """`count` indices from the first to the last of `length`, so that every part of a mixture is seen."""
    return sorted({int(place) for place in np.linspace(0, length - 1, min(count, length))})


def _sides(dataset: EncodedDataset, place: int, tokenizer: Any) -> list[Shown]:
    """A sample, or both sides of a pair."""
    if not dataset.pairs:
        return [_shown(place, dataset[place], tokenizer)]
    sides = ((dataset[2 * place], "chosen"), (dataset[2 * place + 1], "rejected"))
    return [replace(_shown(place, sequence, tokenizer), side=side) for sequence, side in sides]


def _shown(index: int, sequence: Sequence, tokenizer: Any, answer: str | None = None) -> Shown:
    ids = [int(token) for token in sequence.tokens]
    trained = [bool(target) for target in sequence.target]
    return Shown(
        number=index + 1,
        sample_id=sequence.sample_id,
        ids=ids,
        tokens=[str(token) for token in tokenizer.convert_ids_to_tokens(ids)],
        trained=trained,
        pieces=list(_pieces(ids, trained, tokenizer)),
        answer=answer,
    )


def _pieces(ids: list[int], trained: list[bool], tokenizer: Any) -> Iterator[Piece]:
    """Runs of tokens that are alike; every special token is a piece of its own."""
    special_ids = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special_ids |= set(tokenizer.all_special_ids)
    start = 0
    for end in range(1, len(ids) + 1):
        special = ids[end - 1] in special_ids
        if end < len(ids) and not special and trained[end] == trained[start] and ids[end] not in special_ids:
            continue
        yield Piece(_text(ids, start, end, tokenizer), trained[start], special)
        start = end


def _text(ids: list[int], start: int, end: int, tokenizer: Any) -> str:
    first = max(0, start - _WINDOW)
    before, through = decode(tokenizer, ids[first:start]), decode(tokenizer, ids[first:end])
    return through[len(before) :] if through.startswith(before) else decode(tokenizer, ids[start:end])
