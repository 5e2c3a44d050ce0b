"""A loss or gradient that is not finite stops the run, with what caused it saved and named."""

import json
import math
from collections.abc import Sequence as List
from pathlib import Path

from posttrain.data import Sequence
from posttrain.training.ranks import Ranks
from posttrain.training.step import StepResult


class NonFinite(Exception):
    """A loss or gradient is NaN or infinite. The message names the step and the files with the sequences."""


def check_finite(
    folder: Path, stage: str, step: int, result: StepResult, norm: float, sequences: List[Sequence], ranks: Ranks
) -> None:
    """Raises `NonFinite` on every rank when the step's loss or gradient norm is not finite.

    `step` counts from 1, as in the metrics. Before, each rank saves the sequences of its micro-batches whose loss is
    bad; where no loss is bad but the gradient is, all its `sequences` of the step.
    """
    if math.isfinite(result.loss) and math.isfinite(norm):
        return
    what = "gradient" if math.isfinite(result.loss) else "loss"
    guilty = list(sequences) if what == "gradient" else result.offending
    path = folder / f"{stage}-step-{step}-rank-{ranks.rank}.json"
    reports = ranks.gather((_saved(path, guilty), sorted({sequence.sample_id for sequence in guilty})))
    ids = [sample_id for _, names in reports for sample_id in names]
    shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    raise NonFinite(
        f"stage '{stage}', step {step}: the {what} is not finite (loss {result.loss}, gradient norm {norm}); "
        f"no weight was changed. {'; '.join(note for note, _ in reports if note)}. Samples: {shown or 'none'}. "
        "Usual causes: a learning rate that is too high, bfloat16 weights, or bad rows in the data. "
        "The last checkpoint, if there is one, is whole"
    )


def _saved(path: Path, sequences: List[Sequence]) -> str:
    """Save the sequences and say where; a full disk must not hide the fault."""
    if not sequences:
        return ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([_readable(sequence) for sequence in sequences]), encoding="utf-8")
    except OSError as error:
        return f"The batch could not be saved in '{path}': {error.strerror or error}"
    return f"The batch is saved in '{path}'"


def _readable(sequence: Sequence) -> dict[str, object]:
    return {
        "sample_id": sequence.sample_id,
        "group": sequence.group,
        "tokens": sequence.tokens.tolist(),
        "target": sequence.target.tolist(),
        "origin": sequence.origin.tolist(),
        "inputs": None if sequence.inputs is None else sequence.inputs.tolist(),
        "columns": {name: values.tolist() for name, values in sequence.columns.items()},
        "scalars": dict(sequence.scalars),
    }
