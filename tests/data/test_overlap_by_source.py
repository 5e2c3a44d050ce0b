"""Sheet 44's splitter: sizes, proportions, nesting, and what counts as the same question."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.curation import curate
from posttrain.data import Sample, user
from posttrain.data.splitting import decontaminate, normalised_questions, overlapping_by_source, overlapping_split
from posttrain.errors import UserError


def pool(**counts: int) -> list[Sample]:
    return [
        Sample((user(f"{name} {number}"),), meta={"source": name})
        for name, count in counts.items()
        for number in range(count)
    ]


def ids(samples: list[Sample]) -> set[str]:
    return {sample.id for sample in samples}


def sources(samples: list[Sample]) -> Counter[str]:
    return Counter(str(sample.meta["source"]) for sample in samples)


def test_overlap_is_a_share_of_the_second_part_not_of_the_first_or_of_both() -> None:
    """The sheet's check 5: of {1, 2, 3, 4} half is in {3 ... 8}; Jaccard's index would be a quarter."""
    a, b = overlapping_split([str(number) for number in range(20)], 6, 4, 0.5, seed=0)
    assert len(set(a) & set(b)) / len(b) == 0.5
    assert len(set(a) & set(b)) / len(set(a) | set(b)) == 0.25


def test_30_percent_of_16000_are_4800_old_and_11200_new_ones() -> None:
    a, b = overlapping_split([str(number) for number in range(40_000)], 20_000, 16_000, 0.3, seed=0)
    assert (len(set(a) & set(b)), len(set(b) - set(a))) == (4_800, 11_200)


def test_parts_have_the_sources_in_the_proportions_of_the_whole() -> None:
    samples = pool(first=800, second=700, third=300, fourth=200)
    for overlap in (0.0, 0.3, 1.0):
        a, b = overlapping_by_source(samples, 1000, 800, overlap, 0, "source")
        assert sources(a) == {"first": 400, "second": 350, "third": 150, "fourth": 100}
        assert sources(b) == {"first": 320, "second": 280, "third": 120, "fourth": 80}
        assert len(ids(a) & ids(b)) == overlap * 800


@settings(max_examples=40, deadline=None)
@given(
    counts=st.dictionaries(st.sampled_from("abcde"), st.integers(3, 40), min_size=1),
    share=st.floats(0.05, 1.0),
    overlap=st.floats(0.0, 1.0),
    seed=st.integers(0, 9),
)
def test_the_invariants_of_a_partition(counts: dict[str, int], share: float, overlap: float, seed: int) -> None:
    """The sheet's check 7."""
    samples = pool(**counts)
    size_a = max(1, len(samples) // 2 - len(counts))
    size_b = max(1, round(share * size_a))
    a, b = overlapping_by_source(samples, size_a, size_b, overlap, seed, "source")
    again = overlapping_by_source(samples[::-1], size_a, size_b, overlap, seed, "source")
    none = overlapping_by_source(samples, size_a, size_b, 0.0, seed, "source")
    whole = overlapping_by_source(samples, size_a, size_b, 1.0, seed, "source")
    assert (a, b) == again  # the order of the rows is nothing
    assert (len(ids(a)), len(ids(b))) == (size_a, size_b)
    assert len(ids(a) & ids(b)) == round(overlap * size_b)
    assert not ids(none[0]) & ids(none[1])
    assert ids(whole[1]) <= ids(whole[0]) == ids(none[0]) == ids(a)
    assert ids(b) - ids(a) <= ids(none[1])  # nested
    assert sources(b) == sources(none[1]) == sources(whole[1])
    for name, count in counts.items():
        assert abs(sources(b)[name] - size_b * count / len(samples)) < 1.5


def test_shared_questions_do_not_come_first() -> None:
    a, b = overlapping_by_source(pool(first=60, second=60), 50, 50, 0.5, 0, "source")
    first = sum(sample.id in ids(a) for sample in b[:25])
    assert 5 <= first <= 20


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(
        UserError, match="108 samples with source 'many' are needed for parts of 60 and 60 that share 0"
    ):
        overlapping_by_source(pool(many=90, few=10), 60, 60, 0.0, 0, "source")
    with pytest.raises(UserError, match=r"50 items \(50% of 100\) cannot be shared with a part of 10"):
        overlapping_by_source(pool(first=200), 10, 100, 0.5, 0, "source")
    with pytest.raises(UserError, match="at least 1 item"):
        overlapping_by_source(pool(first=9), 0, 2, 0.5, 0, "source")
    with pytest.raises(UserError, match="from 0 to 1"):
        overlapping_by_source(pool(first=9), 2, 2, 1.5, 0, "source")
    with pytest.raises(UserError, match="no 'topic' in its meta, only source"):
        overlapping_by_source(pool(first=9), 2, 2, 0.5, 0, "topic")


def test_a_question_is_the_same_whatever_its_case_and_spaces() -> None:
    told = [
        Sample((user(text),), meta={"source": "x"})
        for text in ("If  m is\n2.", "if m is 2. ", "if m is ２.", "if n is 2.")
    ]
    assert len({normalised_questions(sample) for sample in told}) == 2
    assert curate({"name": "deduplicate", "by": "question"}, told, 0, {}) == [told[0], told[3]]
    silent = [Sample(({"role": "system", "content": text},)) for text in "ab"]  # with no question to be the same
    assert curate({"name": "deduplicate", "by": "question"}, silent, 0, {}) == silent
    assert curate({"name": "deduplicate", "by": "prompt"}, told, 0, {}) == told
    assert decontaminate(told, [told[2]]) == ([told[3]], told[:3])


def test_the_curation_gives_either_part() -> None:
    samples = pool(first=40, second=20)
    spec = {"name": "overlapping", "size_a": 30, "size_b": 15, "overlap": 0.2, "source": "source"}
    a, b = (curate({**spec, "side": side}, samples, 4, {}) for side in "ab")
    assert (a, b) == overlapping_by_source(samples, 30, 15, 0.2, 4, "source")
