"""What more questions and more answers to each are worth in fine-tuning, from the scores of several data sets."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posttrain.errors import UserError


@dataclass(frozen=True)
class ScalingFit:
    """z = `prompts` x + `responses` y + `constant`, and the share of z's variance that it explains, `r_squared`.

    x and y are the standardised binary logarithms, so that the two factors can be compared: what one standard
    deviation of either is worth, in the unit of z.
    """

    prompts: float
    responses: float
    constant: float
    r_squared: float


def fit_scaling(prompts: npt.ArrayLike, responses: npt.ArrayLike, scores: npt.ArrayLike) -> ScalingFit:
    """Least squares over data sets of `prompts[D]` distinct questions with `responses[D]` answers to each, and scores.

    The regression of AceReason-Nemotron 1.1 (arXiv 2506.13284): 4.831 and 2.635 with R² = 0.989 on its 7 data sets. The
    constant and the population's standard deviation are reconstructed. Raises `UserError` where either number is the
    same everywhere, or there are fewer than 3 data sets.
    """
    columns = [np.log2(np.asarray(counts, dtype=np.float64)) for counts in (prompts, responses)]
    z = np.asarray(scores, dtype=np.float64)
    if len(z) < 3 or any(len(column) != len(z) for column in columns):
        raise UserError(f"prompts, responses and scores of 3 data sets or more are needed, found {len(z)} scores")
    if any(column.std() == 0 for column in columns):
        raise UserError("prompts and responses must both differ between data sets: else their worth cannot be told")
    standardised = [(column - column.mean()) / column.std() for column in columns]
    design = np.stack([*standardised, np.ones(len(z))], axis=1)
    found, *_ = np.linalg.lstsq(design, z, rcond=None)
    left, spread = ((z - design @ found) ** 2).sum(), ((z - z.mean()) ** 2).sum()
    a, b, constant = (float(value) for value in found)
    return ScalingFit(a, b, constant, float(1 - left / spread) if spread > 0 else 1.0)
