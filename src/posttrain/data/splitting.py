"""Parts of a data set that depend on what the samples are, not on the order of their rows."""

import hashlib
import re
from collections.abc import Iterable
from collections.abc import Sequence as List
from itertools import pairwise
from typing import TypeVar

from posttrain.data.sample import Sample
from posttrain.errors import UserError

Item = TypeVar("Item", Sample, str)


def split(items: Iterable[Item], sizes: List[int] | List[float], seed: int) -> list[list[Item]]:
    """Disjoint parts of samples (or of their ids), one for each of `sizes`, exact to rounding.

    `sizes` are counts, or fractions that add up to at most 1. The same items and seed give the same parts in whatever
    order the items come. Raises `UserError` for sizes that do not fit, and for duplicates: they would end in two parts.
    """
    ordered = _shuffled(items, seed)
    parts: list[list[Item]] = []
    start = 0
    for size in _counts(sizes, len(ordered)):
        parts.append(ordered[start : start + size])
        start += size
    return parts


def overlapping_split(
    items: Iterable[Item], size_a: int, size_b: int, overlap: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """Two parts `a` and `b`, of which the share `overlap` of `b` (rounded to whole items) is in `a` too.

    `a` is the same for every overlap. Raises `UserError` where there are too few items, or fewer in `a` than shared.
    """
    if not 0 <= overlap <= 1:
        raise UserError(f"overlap is {overlap}; it is a share of the second part, from 0 to 1")
    ordered = _shuffled(items, seed)
    shared = round(overlap * size_b)
    if min(size_a, size_b) < 1:
        raise UserError(f"sizes {size_a} and {size_b}: both parts need at least 1 item")
    if shared > size_a:
        raise UserError(f"{shared} items ({overlap:.0%} of {size_b}) cannot be shared with a part of {size_a}")
    needed = size_a + size_b - shared
    if needed > len(ordered):
        raise UserError(
            f"parts of {size_a} and {size_b} that share {shared} need {needed} items; there are {len(ordered)}"
        )
    second = ordered[size_a - shared : needed]
    return ordered[:size_a], _shuffled(second, seed + 1)  # shuffled anew: the shared ones shall not come first


def deduplicate(samples: Iterable[Sample]) -> list[Sample]:
    """The samples without those whose id came before, in their order."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.id, sample)
    return list(first.values())


def decontaminate(train: Iterable[Sample], test: Iterable[Sample], ngram: int = 0) -> tuple[list[Sample], list[Sample]]:
    """Training samples without a test question, and those with one: `(kept, removed)`.

    A sample is removed if its user turns are those of a test sample; with `ngram` > 0 also if a user turn shares so
    many successive words (case and punctuation aside) with one of a test sample.
    """
    questions: set[tuple[str, ...]] = set()
    grams: set[tuple[str, ...]] = set()
    for sample in test:
        questions.add(_questions(sample) or ("",))
        grams |= _ngrams(sample, ngram)
    kept: list[Sample] = []
    removed: list[Sample] = []
    for sample in train:
        seen = _questions(sample) in questions or not grams.isdisjoint(_ngrams(sample, ngram))
        (removed if seen else kept).append(sample)
    return kept, removed


def _shuffled(items: Iterable[Item], seed: int) -> list[Item]:
    """In the order of a hash of seed and id."""
    by_id = {}
    count = 0
    for item in items:
        by_id[item.id if isinstance(item, Sample) else item] = item
        count += 1
    if len(by_id) < count:
        raise UserError(f"{count - len(by_id)} of {count} items are exact duplicates; remove them before splitting")
    return [by_id[name] for name in sorted(by_id, key=lambda name: (_hash(seed, name), name))]


def _hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()


def _counts(sizes: List[int] | List[float], total: int) -> list[int]:
    if not sizes or any(size < 0 for size in sizes):
        raise UserError(f"sizes are {list(sizes)}; give at least one, and none below 0")
    if all(isinstance(size, int) for size in sizes):
        counts = [int(size) for size in sizes]
        if sum(counts) > total:
            raise UserError(f"parts of {', '.join(map(str, counts))} need {sum(counts)} items; there are {total}")
        return counts
    if not all(isinstance(size, float) for size in sizes) or sum(sizes) > 1 + 1e-9:
        raise UserError(f"sizes are {list(sizes)}; give counts, or fractions (with a point) that add up to at most 1")
    bounds = [round(total * sum(sizes[:place])) for place in range(len(sizes) + 1)]  # ends differ by rounding alone
    return [end - start for start, end in pairwise(bounds)]


def _questions(sample: Sample) -> tuple[str, ...]:
    return tuple(str(turn.get("content", "")).strip() for turn in sample.prompt if turn["role"] == "user")


def _ngrams(sample: Sample, length: int) -> set[tuple[str, ...]]:
    if length < 1:
        return set()
    grams: set[tuple[str, ...]] = set()
    for question in _questions(sample):
        words = re.findall(r"\w+", question.casefold())
        grams.update(zip(*(words[start:] for start in range(length)), strict=False))
    return grams
