"""Curation functions: which samples of a data set are kept, and in what order."""

from collections.abc import Callable

import numpy as np

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.registry import Registry

curations: Registry[Callable[..., list[Sample]]] = Registry("curation")
"""Functions `(samples, seed, options) -> samples`, applied in the order that a curate stage lists them."""


@curations.register("deduplicate")
def deduplicate(samples: list[Sample], seed: int, *, by: str = "id") -> list[Sample]:
    """Keep the first of equal samples: `by` "id" (everything equal) or "prompt" (the same question)."""
    if by not in ("id", "prompt"):
        raise UserError(f"curation 'deduplicate', option 'by': found '{by}', allowed are 'id' and 'prompt'")
    first = {(sample.id if by == "id" else sample.prompt_id): sample for sample in reversed(samples)}
    return list(reversed(first.values()))


@curations.register("sample")
def draw(samples: list[Sample], seed: int, *, count: int) -> list[Sample]:
    """`count` samples drawn without replacement, in their old order; all of them where there are no more."""
    if count >= len(samples):
        return samples
    chosen = np.random.default_rng(seed).choice(len(samples), size=count, replace=False)
    return [samples[index] for index in sorted(chosen)]


@curations.register("length")
def length(samples: list[Sample], seed: int, *, smallest: int = 1, largest: int = 2**31) -> list[Sample]:
    """Keep responses of `smallest` to `largest` characters."""
    return [sample for sample in samples if smallest <= len(sample.response_text) <= largest]
