"""Curation functions: which samples of a data set are kept, and in what order."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from posttrain.data import Sample, splitting
from posttrain.errors import UserError
from posttrain.registry import Registry

_MISLABEL = 0x4D4C  # a train stage's order is drawn from the same seed, and noise must not come first in it

curations: Registry[Callable[..., list[Sample]]] = Registry("curation")
"""Functions `(samples, seed, *, options) -> samples`, applied in the order that a curate stage lists them. One with a
third parameter `models` is given the models that the stage names."""


FINAL_ANSWER = "final_answer"
"""Where the meta of a drawn answer keeps what the verifier read as the final answer, in one spelling."""


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn: `n` to each question. Where they are not `scored`, questions need no right answer."""

    n: int
    temperature: float
    max_new_tokens: int
    scored: bool = True


@dataclass(frozen=True)
class Reply:
    """An answer that a model has drawn. `right`: by the verifier, in full; None where there is no score.

    `answer`: the final answer that the verifier read, in one spelling.
    """

    text: str
    right: bool | None
    answer: str | None = None


class LanguageModel(Protocol):
    """What a curation may ask of a model."""

    def logprobs(self, samples: list[Sample], *, ends: bool = True) -> list[npt.NDArray[np.float32] | None]:
        """For each sample `[T]`: log-probs of its response's tokens under the model's own tokenizer and template.

        `ends`: those that end a turn too. None for a sample that the model cannot read: without a response, too long.
        """
        ...

    def draw(self, samples: list[Sample], drawing: Drawing) -> list[list[Reply]]:
        """For each sample the model's own answers to its question."""
        ...


Models = Mapping[str, LanguageModel]
"""By the name that the recipe gives them, in the stage's order."""


def takes_models(kind: str) -> bool:
    """Does the curation of this name ask models?"""
    return "models" in inspect.signature(curations[kind]).parameters


UNSCORED = frozenset({"self_consistency", "self_judge"})
"""Curations that let models answer, and do not ask what is right."""


def curate(spec: str | dict[str, Any], samples: list[Sample], seed: int, models: Models) -> list[Sample]:
    """What the curation that a recipe names leaves of some samples."""
    kind, options = curations.options(spec)
    given = (models,) if takes_models(kind) else ()
    return list(curations[kind](samples, seed, *given, **options))


@curations.register("deduplicate")
def deduplicate(samples: list[Sample], seed: int, *, by: Literal["id", "prompt", "question"] = "id") -> list[Sample]:
    """Keep the first of equal samples: `by` "id" (everything equal), "prompt" (the same prompt to the letter) or
    "question" (the same user turns, case and spaces aside: what several sources tell in several ways)."""
    if by == "id":
        return splitting.deduplicate(samples)
    first: dict[Any, Sample] = {}
    for sample in samples:
        question = splitting.normalised_questions(sample) if by == "question" else ()
        first.setdefault(question or sample.prompt_id, sample)
    return list(first.values())


@curations.register("per_prompt")
def per_prompt(
    samples: list[Sample], seed: int, *, count: Annotated[int, Field(ge=1)], shortest: bool = False
) -> list[Sample]:
    """The first `count` samples of each question: so many of a model's own answers, whatever is easy to answer.

    `shortest`: those with the shortest responses instead (in characters; of equal ones the first), in their old order.
    The shortest right trace of a question (arXiv 2507.08267) is this of answers that a generate stage kept as `right`.
    """
    places = list(range(len(samples)))
    if shortest:
        places.sort(key=lambda place: len(samples[place].response_text))
    seen: Counter[str] = Counter()
    kept = []
    for place in places:
        name = samples[place].prompt_id
        if seen[name] < count:
            kept.append(place)
        seen[name] += 1
    return [samples[place] for place in sorted(kept)]


@curations.register("part")
def part(samples: list[Sample], seed: int, *, sizes: list[int] | list[float], index: int) -> list[Sample]:
    """One of several disjoint parts: `sizes` are counts, or shares of the whole; two stages that differ in `index`
    alone never share a sample, whatever the order of the rows."""
    if not 0 <= index < len(sizes):
        raise UserError(f"curation 'part', option 'index': found {index}, but there are {len(sizes)} sizes")
    return splitting.split(samples, sizes, seed)[index]


@curations.register("overlapping")
def overlapping(
    samples: list[Sample],
    seed: int,
    *,
    size_a: int,
    size_b: int,
    overlap: float,
    side: Literal["a", "b"],
    source: str | None = None,
) -> list[Sample]:
    """One of two parts, of which the share `overlap` of `b` is in `a` too: how much two stages have in common.

    `a` is the same at every overlap, and what is new in `b` at a large one is in it at a small one too. `source`: a key
    of the samples' meta (or "task") whose values have the same shares in both parts. The overlap of SFT and RL data in
    arXiv 2604.13515 is of questions: deduplicate by them first.
    """
    if source is None:
        a, b = splitting.overlapping_split(samples, size_a, size_b, overlap, seed)
    else:
        a, b = splitting.overlapping_by_source(samples, size_a, size_b, overlap, seed, source)
    return a if side == "a" else b


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


@curations.register("mislabel")
def mislabel(samples: list[Sample], seed: int, *, share: Annotated[float, Field(ge=0, le=1)]) -> list[Sample]:
    """Label noise: a `share` of the samples, drawn at random, get one another's responses.

    The scalar `mislabelled` says which (1) and which not (0).
    """
    rng = np.random.default_rng([seed, _MISLABEL])
    drawn = rng.permutation(len(samples))[: round(share * len(samples))].tolist()
    response = {index: samples[other].response for index, other in zip(drawn, drawn[1:] + drawn[:1], strict=True)}
    return [
        replace(
            sample,
            response=response.get(index, sample.response),
            scalars={**sample.scalars, "mislabelled": float(index in response)},
        )
        for index, sample in enumerate(samples)
    ]
