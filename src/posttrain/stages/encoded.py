"""Data sets as tokens, for the stages that score or train them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.data import Sample, Sequence
from posttrain.data.encoding import encode
from posttrain.data.rendering import Rendering, render, render_prompt
from posttrain.data.token_store import EncodedDataset
from posttrain.errors import UserError
from posttrain.policy.loading import context_length
from posttrain.recipe import Data
from posttrain.recipe.training import Rendered
from posttrain.stages.context import Context

Forced = str | Mapping[str, str]
"""What every answer is made to begin with, or each by the id of its sample."""


def rendering_of(stage: Rendered, model: Any) -> Rendering:
    """How a stage turns samples into tokens. Raises `UserError` when it asks for more than the model can read."""
    context = context_length(model)
    if stage.max_length is not None and stage.max_length > context:
        raise UserError(f"max_length is {stage.max_length}, but the model reads at most {context} tokens")
    length = stage.max_length or min(context, 2**20)
    return Rendering(
        length,
        template=stage.template,
        loss_on=stage.loss_on,
        overlong=stage.overlong,
        append_eos=stage.append_eos,
        template_options=stage.template_options,
    )


def encoded(
    context: Context,
    name: str,
    tokenizer: Any,
    rendering: Rendering,
    *,
    pairs: bool = False,
    max_refused: float | None = None,
) -> EncodedDataset:
    """The data set `name` as tokens, from the cache beside the run folders where it was made before.

    `pairs`: both sides of preference pairs. `max_refused`: the share of rows that may be refused; default: what the
    recipe says of the data.
    """
    data = context.data(name)
    with context.terminal.bar(f"tokenising {name}", _rows(data), "rows") as bar:
        seen = 0

        def progress(rows: int) -> None:
            nonlocal seen
            bar.advance(rows - seen)
            seen = rows

        def samples() -> Iterator[Sample]:  # made only where no tokens are stored: a task makes all of them at once
            yield from context.samples(data)

        def stored() -> EncodedDataset:
            return encode(
                samples(),
                tokenizer,
                rendering,
                Path(context.folder).parent / ".cache",
                content=context.data_fingerprint(data, written=True),
                pairs=pairs,
                deduplicate=not _repeats(data),
                max_refused=data.max_refused if max_refused is None else max_refused,
                progress=progress,
            )

        if context.ranks.count > 1:
            context.ranks.on_main(lambda: len(stored()))  # the other ranks then open what the first one made
        return stored()


def _repeats(data: Data) -> bool:
    return data.repeat > 1 or any(_repeats(part) for part in data.mix or [])


def _rows(data: Data) -> int | None:
    """About how many rows there are, where that is quick to say."""
    if data.mix is not None:
        parts = [_rows(part) for part in data.mix]
        return None if None in parts else sum(part for part in parts if part is not None)
    if data.path is None or not data.path.endswith(".jsonl") or not Path(data.path).is_file():
        return data.count
    with Path(data.path).open("rb") as file:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return min(lines, data.count or lines)


def beginning(forced: Forced, sample: Sample) -> str:
    """What the answer to this sample is made to begin with."""
    return forced if isinstance(forced, str) else forced[sample.id]


def prompts_of(
    samples: list[Sample], tokenizer: Any, rendering: Rendering, room: int, forced: Forced = ""
) -> dict[str, npt.NDArray[np.int32]]:
    """Tokens of every sample's prompt by sample id, with what the answer is `forced` to begin with.

    Raises `UserError` that names the longest prompt when it leaves no room for `room` new tokens.
    """
    prompts = {sample.id: render_prompt(sample, tokenizer, rendering, beginning(forced, sample)) for sample in samples}
    longest = max(samples, key=lambda sample: len(prompts[sample.id]))
    length, limit = len(prompts[longest.id]), rendering.max_length
    if length + room > limit:
        raise UserError(
            f"the prompt of {where(longest)} has {length} tokens; with max_new_tokens={room} that is more than the "
            f"{limit} tokens that the model can read: lower max_new_tokens or leave such prompts out"
        )
    return prompts


def demonstrations_of(
    samples: list[Sample], prompts: dict[str, npt.NDArray[np.int32]], tokenizer: Any, rendering: Rendering, room: int
) -> dict[str, npt.NDArray[np.int32]]:
    """Tokens of every sample's response by sample id, its end included, for answers that begin with part of it.

    None for a sample without a response. Raises `UserError` where `room` new tokens do not fit behind nearly all of it,
    and where the template writes the question otherwise with a response than without.
    """
    found = {sample.id: np.zeros(0, np.int32) for sample in samples}
    for sample in samples:
        rendered = render(sample, tokenizer, rendering) if sample.response else None
        if not isinstance(rendered, Sequence):
            continue
        prompt, first = prompts[sample.id], int(np.argmax(rendered.target))
        if not np.array_equal(rendered.tokens[:first], prompt):
            raise UserError(
                f"the template writes {where(sample)} otherwise with a response than without, so that no answer can "
                "begin with part of it: leave 'begin' out, or take another template"
            )
        found[sample.id] = rendered.tokens[first:]
        if len(rendered) + room > rendering.max_length:
            raise UserError(
                f"prompt and response of {where(sample)} have {len(rendered)} tokens; with max_new_tokens={room} that "
                f"is more than the {rendering.max_length} tokens that the model can read: lower max_new_tokens"
            )
    return found


def where(sample: Sample) -> str:
    """A sample as a user finds it: by its row where it comes from a file."""
    row, source = sample.meta.get("row"), sample.meta.get("source")
    return f"sample {sample.id}" if row is None else f"row {row} of {source}"
