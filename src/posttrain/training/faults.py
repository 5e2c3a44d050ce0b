"""A loss or gradient that is not finite stops the run, with what caused it saved and named."""

import json
import math
from pathlib import Path

from posttrain.data import Sequence
from posttrain.training.ranks import Ranks
from posttrain.training.step import StepResult


class NonFinite(Exception):
    """A loss or gradient is NaN or infinite. The message names the step and the file with the sequences."""


def check_finite(folder: Path, stage: str, step: int, result: StepResult, norm: float, ranks: Ranks) -> None:
    """Raises `NonFinite` on every rank when the step's loss or gradient norm is not finite.

    The sequences of the offending micro-batches (all of the rank's, when only the gradient is bad) are saved before.
    """
    if math.isfinite(result.loss) and math.isfinite(norm):
        return
    what = "loss" if not math.isfinite(result.loss) else "gradient"
    path = folder / f"{stage}-step-{step}-rank-{ranks.rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([_readable(sequence) for sequence in result.offending]))
    ids = ", ".join(sorted({sequence.sample_id for sequence in result.offending})[:5]) or "none of them alone"
    raise NonFinite(
        f"stage '{stage}', step {step}: the {what} is not finite (loss {result.loss}, gradient norm {norm}); "
        f"the batch is saved in '{path}' (samples: {ids}); the last checkpoint is whole. "
        "Usual causes: a learning rate that is too high, bfloat16 weights, or bad rows in the data"
    )


def _readable(sequence: Sequence) -> dict[str, object]:
    return {
        "sample_id": sequence.sample_id,
        "tokens": sequence.tokens.tolist(),
        "target": sequence.target.tolist(),
        "columns": {name: values.tolist() for name, values in sequence.columns.items()},
        "scalars": dict(sequence.scalars),
    }
