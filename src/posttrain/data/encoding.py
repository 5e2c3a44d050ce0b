"""Samples to a data set of sequences on disk, made once for the same data, tokenizer, template and options."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as List
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.data.rendering import (
    NOT_A_PAIR,
    OVERLONG,
    Rendered,
    Rendering,
    render_batch,
    render_pairs,
    template_notes,
)
from posttrain.data.sample import Sample
from posttrain.data.token_store import FORMAT, EncodedDataset, Example, Report, StoreWriter, new_store, open_store
from posttrain.data.turns import (
    ENDED_TWICE,
    NO_TARGET,
    NOT_ENDED,
    PREFIX_CHANGES,
    TEMPLATE_DROPS,
    TEMPLATE_REFUSES,
    Refusal,
)
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 1 << 20  # the tokenizer's working memory is a hundred times the text
_EXAMPLES = 1000

_REMEDIES = {
    PREFIX_CHANGES: "give the tokenizer a chat template that writes every turn the same way whatever follows it, set "
    "loss_on: last where only earlier turns change, or set template_options (enable_thinking ...) to fit the answers",
    NOT_ENDED: "give the tokenizer a chat template that ends each assistant turn with a special token, inside its "
    "generation marks if it has any",
    ENDED_TWICE: "take the end-of-turn token out of the content: the template writes it",
    TEMPLATE_REFUSES: "change the order or the roles of the turns, or the template",
    TEMPLATE_DROPS: "give the tokenizer a chat template that writes tools and thoughts, or take them out of the rows",
    NO_TARGET: "every row needs an answer that begins before max_length",
    NOT_A_PAIR: "the objective compares answers (or counts by the scalar 'chosen'): every row needs prompt, chosen and "
    "rejected; take a loss that needs no pairs, such as nll, for rows with one answer (or kto, where every row has "
    "the scalar 'chosen')",
    OVERLONG: "raise max_length, or set overlong: truncate",
}


def encode(
    samples: Iterable[Sample],
    tokenizer: "PreTrainedTokenizerBase",
    rendering: Rendering,
    cache_dir: Path | None = None,
    *,
    content: str | None = None,
    pairs: bool = False,
    deduplicate: bool = True,
    max_refused: float = 0.05,
    progress: Callable[[int], None] | None = None,
) -> EncodedDataset:
    """Render every sample and store the sequences; open the stored ones instead where the same were made before.

    `content` names the data (`readers.fingerprint` of a file), so that a cached data set is found without reading
    them; a list of samples is named by their ids and scalars. Without `cache_dir` the files live as long as the data
    set. `pairs` encodes both sides of preference pairs, or single answers where the first row is labelled by the scalar
    `chosen`. `deduplicate` drops samples whose id came before. `progress` is called with the number of rows read so
    far.

    Raises `UserError`, with counts and examples, when nothing is kept, or when more than the share `max_refused` of
    the rows is refused (duplicates and overlong rows are counted, but take no part in the share).
    """
    name = content or (_ids_digest(samples) if isinstance(samples, list | tuple) else None)
    maker = [_tokenizer_digest(tokenizer), asdict(rendering), pairs, deduplicate]
    if cache_dir is not None and name is not None:
        cached = open_store(cache_dir / _key(name, maker))
        if cached is not None:
            _check(cached.report, max_refused)
            return cached
    temporary = tempfile.TemporaryDirectory(prefix="posttrain-") if cache_dir is None else None
    parent = Path(temporary.name) if temporary is not None else Path(cache_dir or "")
    try:
        with new_store(parent) as writer:
            report = Report(notes=template_notes(tokenizer, rendering))
            ids = hashlib.blake2b(digest_size=16)
            rows = iter(samples)
            first = list(islice(rows, 1))
            sides = pairs and not any(map(_is_labelled, first))
            counted = _counted(chain(first, rows), report, deduplicate, ids.update)
            _render(counted, tokenizer, rendering, sides, writer, report, progress)
            _check(report, max_refused)
            folder = parent / _key(name or ids.hexdigest(), maker)
            writer.publish(folder, sides, report)
    except OSError as error:
        raise UserError(f"cannot encode into '{parent}': {error.strerror or error}; nothing was left there") from error
    return EncodedDataset(folder, temporary)


def _render(
    rows: Iterable[tuple[int, Sample]],
    tokenizer: "PreTrainedTokenizerBase",
    rendering: Rendering,
    sides: bool,
    writer: StoreWriter,
    report: Report,
    progress: Callable[[int], None] | None,
) -> None:
    """Render rows, batch by batch, into the store; `sides`: both of each pair."""
    render = render_pairs if sides else render_batch
    for batch in _batches(rows, rendering):
        outcomes = render([sample for _, sample in batch], tokenizer, rendering)
        for (row, sample), outcome in zip(batch, outcomes, strict=True):
            _store(row, sample, outcome, writer, report)
        if progress is not None:
            progress(report.rows)


def _is_labelled(sample: Sample) -> bool:
    """Is this one answer that is said to be good or bad (KTO), and no pair?"""
    return "chosen" in sample.scalars and not sample.rejected


def _counted(
    samples: Iterable[Sample], report: Report, deduplicate: bool, name: Callable[[bytes], None]
) -> Iterator[tuple[int, Sample]]:
    """Samples with the number of their row; duplicates are counted and left out, and every id goes into the name."""
    seen: set[str] = set()
    for number, sample in enumerate(samples, 1):
        report.rows += 1
        name(_name(sample))
        if deduplicate and sample.id in seen:
            report.duplicates += 1
            continue
        seen.add(sample.id)
        row = sample.meta.get("row")
        yield (row if isinstance(row, int) else number), sample


def _batches(rows: Iterable[tuple[int, Sample]], rendering: Rendering) -> Iterator[list[tuple[int, Sample]]]:
    batch: list[tuple[int, Sample]] = []
    characters = 0
    for row, sample in rows:
        turns = (*sample.prompt, *sample.response, *sample.rejected)
        times = len(turns) if rendering.loss_on == "all" else 2  # a chat is rendered again for each trained turn
        characters += times * sum(len(str(part)) for part in (*turns, *sample.tools))
        batch.append((row, sample))
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _store(
    row: int,
    sample: Sample,
    outcome: Rendered | tuple[Rendered, Rendered] | Refusal,
    writer: StoreWriter,
    report: Report,
) -> None:
    if isinstance(outcome, Refusal):
        report.refused[outcome.reason] = report.refused.get(outcome.reason, 0) + 1
        examples = report.examples.setdefault(outcome.reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(Example(row, sample.id, outcome.detail))
        return
    sides = outcome if isinstance(outcome, tuple) else (outcome,)
    report.kept += 1
    report.truncated += any(side.truncated for side in sides)
    for side in sides:
        writer.add(side.sequence, sample.scalars)
        report.tokens += len(side.sequence)
        report.trained_tokens += side.sequence.targets


def _check(report: Report, max_refused: float) -> None:
    """Raises `UserError` when nothing is left to train on, or too much was refused for it to be an accident."""
    refused = sum(count for reason, count in report.refused.items() if reason != OVERLONG)
    if report.kept and refused <= max_refused * report.rows:
        return
    lines = []
    for reason, count in sorted(report.refused.items(), key=lambda item: -item[1]):
        lines.append(f"  {reason}: {count} of {report.rows} rows")
        lines += [f"    row {item.row} ({item.id}): {item.detail}" for item in report.examples[reason][:3]]
        if reason in _REMEDIES:
            lines.append(f"    -> {_REMEDIES[reason]}")
    if not report.kept:
        raise UserError("\n".join([f"none of the {report.rows} rows can be trained on", *lines]))
    head = (
        f"{refused} of {report.rows} rows ({refused / report.rows:.1%}) cannot be trained on; allowed are "
        f"{max_refused:.1%}. Mend the rows or the template, or raise max_refused to leave them out"
    )
    raise UserError("\n".join([head, *lines]))


# --- keys -------------------------------------------------------------------------------------------------------------


def _key(name: str, maker: object) -> str:
    text = json.dumps([FORMAT, name, maker], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _name(sample: Sample) -> bytes:
    """What a sample adds to the name of a data set: its id, and the numbers that go with it."""
    return (sample.id + (json.dumps(dict(sample.scalars), sort_keys=True) if sample.scalars else "")).encode()


def _ids_digest(samples: List[Sample]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        digest.update(_name(sample))
    return digest.hexdigest()


def _tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of all that decides what tokens a text becomes, the chat template included."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model = json.loads(backend.to_str())
        model.update(padding=None, truncation=None)  # left behind by earlier calls; rendering uses neither
    else:
        model = [type(tokenizer).__name__, tokenizer.get_vocab()]
    text = json.dumps([model, tokenizer.special_tokens_map, tokenizer.chat_template], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
