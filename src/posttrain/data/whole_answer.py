"""Answers as reward models read them: one number, when all of it has been read."""

from dataclasses import replace

import numpy as np

from posttrain.data.sequence import Sequence


def whole_answer(sequence: Sequence) -> Sequence:
    """The same up to its last target, with one target alone: a token behind that, which nobody wrote.

    The state that predicts it has read the whole answer, and knows nothing of the token itself. Sequences without
    targets stay as they are.
    """
    if not sequence.targets:
        return sequence
    end = int(np.flatnonzero(sequence.target)[-1]) + 1
    kept = np.append(np.arange(end), end - 1)
    return replace(
        sequence,
        tokens=sequence.tokens[kept],
        target=np.arange(end + 1) == end,
        origin=sequence.origin[kept],
        inputs=None if sequence.inputs is None else sequence.inputs[kept],
        columns={},
    )
