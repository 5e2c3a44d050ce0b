"""Parts of a data set that depend on what the samples are, not on the order of their rows."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
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
    ordered = _shuffled(items, seed)
    shared = _shared(size_a, size_b, overlap)
    needed = size_a + size_b - shared
    if needed > len(ordered):
        raise UserError(
            f"parts of {size_a} and {size_b} that share {shared} need {needed} items; there are {len(ordered)}"
        )
    second = ordered[size_a - shared : needed]
    return ordered[:size_a], _shuffled(second, seed + 1)  # shuffled anew: the shared ones shall not come first


def overlapping_by_source(
    samples: Iterable[Sample], size_a: int, size_b: int, overlap: float, seed: int, source: str
) -> tuple[list[Sample], list[Sample]]:
    """`overlapping_split` in which every source has the same share of both parts as of the whole, to whole items.

    `source`: a key of the samples' `meta`, or "task". What is in `b` and not in `a` at some overlap is in `b` at every
    smaller one too. Raises `UserError` like `overlapping_split`, and for samples without that key.
    """
    shared_in_all = _shared(size_a, size_b, overlap)
    by_source: dict[str, list[Sample]] = {}
    for sample in samples:
        by_source.setdefault(_source(sample, source), []).append(sample)
    counts = {name: len(by_source[name]) for name in sorted(by_source)}
    sizes = [_apportioned(size, counts) for size in (size_a, size_b, shared_in_all)]
    a: list[Sample] = []
    b: list[Sample] = []
    for name, of_source in by_source.items():
        in_a, in_b, shared = (size[name] for size in sizes)
        if in_a + in_b - shared > len(of_source):
            raise UserError(
                f"{in_a + in_b - shared} samples with {source} '{name}' are needed for parts of {size_a} and {size_b} "
                f"that share {shared_in_all}; there are {len(of_source)}"
            )
        ordered = _shuffled(of_source, seed)
        a += ordered[:in_a]
        b += ordered[in_a - shared : in_a - shared + in_b]
    return _shuffled(a, seed), _shuffled(b, seed + 1)


def _shared(size_a: int, size_b: int, overlap: float) -> int:
    """How many items are in both parts."""
    if not 0 <= overlap <= 1:
        raise UserError(f"overlap is {overlap}; it is a share of the second part, from 0 to 1")
    if min(size_a, size_b) < 1:
        raise UserError(f"sizes {size_a} and {size_b}: both parts need at least 1 item")
    shared = round(overlap * size_b)
    if shared > size_a:
        raise UserError(f"{shared} items ({overlap:.0%} of {size_b}) cannot be shared with a part of {size_a}")
    return shared


def _source(sample: Sample, key: str) -> str:
    if key == "task":
        return sample.task
    if key not in sample.meta:
        raise UserError(f"sample {sample.id} has no '{key}' in its meta, only {', '.join(sample.meta) or 'nothing'}")
    return str(sample.meta[key])


def _apportioned(total: int, counts: Mapping[str, int]) -> dict[str, int]:
    """`total` dealt out in proportion to `counts`, one at a time to whom most is due (Webster's method).

    With a larger total nobody gets less, so that a shared part is never larger than the part that it is in.
    """
    seats = dict.fromkeys(counts, 0)
    for _ in range(total if counts else 0):
        seats[max(counts, key=lambda name: (counts[name] / (2 * seats[name] + 1), name))] += 1
    return seats


def deduplicate(samples: Iterable[Sample]) -> list[Sample]:
    """The samples without those whose id came before, in their order."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.id, sample)
    return list(first.values())


def decontaminate(train: Iterable[Sample], test: Iterable[Sample], ngram: int = 0) -> tuple[list[Sample], list[Sample]]:
    """Training samples without a test question, and those with one: `(kept, removed)`.

    A sample is removed if its user turns are those of a test sample, case and spaces aside; with `ngram` > 0 also if a
    user turn shares so many successive words (case and punctuation aside) with one of a test sample.
    """
    questions: set[tuple[str, ...]] = set()
    grams: set[tuple[str, ...]] = set()
    for sample in test:
        questions.add(normalised_questions(sample) or ("",))
        grams |= _ngrams(sample, ngram)
    kept: list[Sample] = []
    removed: list[Sample] = []
    for sample in train:
        seen = normalised_questions(sample) in questions or not grams.isdisjoint(_ngrams(sample, ngram))
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


def normalised_questions(sample: Sample) -> tuple[str, ...]:
    """The user turns in one spelling: Unicode's compatible one (NFKC), without case, each gap one space."""
    return tuple(" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in _questions(sample))


def _ngrams(sample: Sample, length: int) -> set[tuple[str, ...]]:
    if length < 1:
        return set()
    grams: set[tuple[str, ...]] = set()
    for question in _questions(sample):
        words = re.findall(r"\w+", question.casefold())
        grams.update(zip(*(words[start:] for start in range(length)), strict=False))
    return grams
