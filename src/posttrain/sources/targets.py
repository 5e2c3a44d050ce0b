"""Which tokens of a step's sequences are trained, where that is not what their rendering says."""

from collections.abc import Sequence as List
from dataclasses import replace

import numpy as np

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.sources.transforms import transform


@transform("every_token")
def every_token(sequences: List[Sequence], step: Step) -> list[Sequence]:
    """Train every token but the first, prompt and template included.

    So the authors of PoFT (arXiv 2412.12865) score the model that they train. Columns (weights, stored log-probs of a
    reference) are of the targets that were, and are dropped.
    """
    return [replace(sequence, target=np.arange(len(sequence)) > 0, columns={}) for sequence in sequences]
