"""`Sequence`: one item as tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class Origin(IntEnum):
    """Who wrote a token."""

    PROMPT = 0
    DEMONSTRATION = 1
    ROLLOUT = 2
    HINT = 3
    ENVIRONMENT = 4
    CORRUPTED = 5


@dataclass(frozen=True)
class Sequence:
    """One item as tokens, `T` of them.

    - `tokens[T]` int32: the tokens whose likelihood is asked for.
    - `target[T]` bool: is this token a training target? Never the first one: nothing predicts it.
    - `origin[T]` uint8, an `Origin`: who wrote the token.
    - `inputs[T]` int32 or None: what the model reads where that differs from `tokens` (corrupted demonstrations).
    - `columns`: named float32 `[T]` values (`sampled_logprob`, `advantage`, `weight` ...), read at targets only.
    - `scalars`: named values of the whole sequence (`reward`, `sample_weight`, `reference_score` ...).
    - `sample_id`: the `Sample.id` it came from. `group`: sequences that are compared with one another share it (the
      rollouts of one prompt, the two sides of a preference pair); empty = a group of its own.
    - `extras`: inputs of multimodal models by the name that the model's forward gives them (`pixel_values` ...).
    """

    tokens: npt.NDArray[np.int32]
    target: npt.NDArray[np.bool_]
    origin: npt.NDArray[np.uint8]
    sample_id: str
    group: str = ""
    inputs: npt.NDArray[np.int32] | None = None
    columns: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        length = len(self.tokens)
        arrays = {"target": self.target, "origin": self.origin, **self.columns}
        if self.inputs is not None:
            arrays["inputs"] = self.inputs
        for name, array in arrays.items():
            if array.shape != (length,):
                raise ValueError(
                    f"sequence {self.sample_id}: '{name}' has shape {array.shape}, but there are {length} tokens"
                )
        if length and self.target[0]:
            raise ValueError(f"sequence {self.sample_id}: the first token is a target, but no token predicts it")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> int:
        """How many tokens are trained."""
        return int(self.target.sum())
