"""Many plans, few executions: which of a problem's plans are carried out, and what the executions elect.

Explore-Execute Chain (arXiv 2509.23946): plans are short, so that many can be drawn where few answers could.
"""

from collections.abc import Callable, Container
from collections.abc import Sequence as List
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.errors import UserError
from posttrain.rewards.plan_adherence import common_subsequence

Array = npt.NDArray[np.float64]
Embed = Callable[[List[str]], Array]
"""`[K]` texts -> vectors `[K, D]`, each of length 1."""

TF_IDF = "tf-idf"


def cluster_plans(plans: List[str], count: int, seed: int, embed: Embed) -> list[tuple[int, float]]:
    """For each of `count` clusters of plans: the number of the plan nearest to its centre, and how many plans it has.

    k-means of the vectors that `embed` gives. Where there are no more different plans than clusters, each is a
    cluster, as large as it was drawn often.
    """
    places: dict[str, list[int]] = {}
    for place, plan in enumerate(plans):
        places.setdefault(plan, []).append(place)
    if len(places) <= count:
        return [(group[0], float(len(group))) for group in places.values()]
    from sklearn.cluster import KMeans  # takes a second to import

    vectors = embed(plans)
    if len(np.unique(vectors, axis=0)) <= count:
        count = len(np.unique(vectors, axis=0))
    found = KMeans(count, n_init=4, random_state=seed).fit(vectors)
    distance = np.linalg.norm(vectors - found.cluster_centers_[found.labels_], axis=1)
    members = [np.flatnonzero(found.labels_ == cluster) for cluster in range(count)]
    return [(int(group[distance[group].argmin()]), float(len(group))) for group in members]


def embedding(name: str) -> Embed:
    """What `embedding` in a recipe names: `tf-idf` of words, or a model that sentence-transformers loads.

    Raises `UserError` where a model is named and sentence-transformers is not installed.
    """
    if name == TF_IDF:
        return _tf_idf
    try:
        library = import_module("sentence_transformers")
    except ImportError as error:
        raise UserError(
            f"embedding '{name}' is a model of sentence-transformers, which is not installed: install it, or take "
            f"'{TF_IDF}'"
        ) from error
    model: Any = library.SentenceTransformer(name)
    return lambda texts: np.asarray(model.encode(list(texts), normalize_embeddings=True), dtype=np.float64)


def _tf_idf(texts: List[str]) -> Array:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"\S+")
    return np.asarray(words.fit_transform(texts).toarray(), dtype=np.float64)


def nearest_text(said: str, candidates: List[str]) -> int:
    """The candidate that shares the longest subsequence of characters with `said`, over the longer one's length.

    So the authors' code finds out which plan a judge has repeated. Of equal ones the first.
    """
    shares = [common_subsequence(said, one) / max(len(said), len(one), 1) for one in candidates]
    return int(np.argmax(shares))


def word_share(text: str, other: str) -> float:
    """Which share of the different words of `text` stands in `other`, case aside; 1 for a text without words."""
    words = set(text.lower().split())
    return len(words & set(other.lower().split())) / len(words) if words else 1.0


def next_plan(revised: str, failed: str, plans: List[str], carried_out: Container[str], alike: float) -> str | None:
    """What is carried out when the plan `failed` came to no answer, and `revised` is what was written in its place.

    That, unless more than the share `alike` of its words are the failed one's, or it was carried out before: then the
    first of `plans` that was not; None where there is none left.
    """
    if word_share(revised, failed) <= alike and revised not in carried_out:
        return revised
    return next((plan for plan in plans if plan not in carried_out), None)


def weighted_vote(answers: List[str | None], weights: List[float]) -> str | None:
    """The answer with the largest sum of weights, of equal ones that which comes first.

    None and empty answers do not vote; None where nothing else is left.
    """
    sums: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer:
            sums[answer] = sums.get(answer, 0.0) + weight
    return max(sums, key=lambda answer: sums[answer]) if sums else None
