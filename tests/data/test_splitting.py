"""Parts depend on the items alone, have the sizes asked for, and overlap as much as asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import Sample, assistant, user
from posttrain.data.splitting import decontaminate, deduplicate, overlapping_split, split
from posttrain.errors import UserError

IDS = [f"id{number}" for number in range(100)]


@given(seed=st.integers(0, 1000), shuffle=st.randoms())
def test_the_order_of_the_rows_does_not_matter(seed, shuffle):
    mixed = list(IDS)
    shuffle.shuffle(mixed)
    assert split(mixed, [0.7, 0.3], seed) == split(IDS, [0.7, 0.3], seed)
    assert overlapping_split(mixed, 40, 30, 0.5, seed) == overlapping_split(IDS, 40, 30, 0.5, seed)


@given(counts=st.lists(st.integers(0, 25), min_size=1, max_size=4), seed=st.integers())
def test_parts_are_disjoint_and_have_their_sizes(counts, seed):
    parts = split(IDS, counts, seed)
    assert [len(part) for part in parts] == counts
    assert len(set().union(*parts)) == sum(counts)


@given(total=st.integers(1, 60), weights=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_fractions_are_exact_to_rounding_and_use_every_item(total, weights):
    fractions = [weight / sum(weights) for weight in weights]
    parts = split(IDS[:total], fractions, seed=0)
    assert sum(len(part) for part in parts) == total
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * total) <= 1


def test_another_seed_gives_other_parts_of_samples():
    samples = [Sample((user(name),)) for name in IDS]
    first, second = (split(samples, [50, 50], seed) for seed in (1, 2))
    assert first != second
    assert {sample.id for part in first for sample in part} == {sample.id for sample in samples}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([90, 20], "need 110 items; there are 100"),
        ([0.9, 0.2], "add up to at most 1"),
        ([0.5, 10], "give counts, or fractions"),
        ([-1], "none below 0"),
        ([], "at least one"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        split(IDS, sizes, 0)


def test_duplicates_are_refused_because_they_would_end_in_two_parts():
    with pytest.raises(UserError, match="1 of 3 items are exact duplicates"):
        split(["a", "b", "a"], [0.5, 0.5], 0)


@given(
    size_a=st.integers(1, 50), size_b=st.integers(1, 50), overlap=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers()
)
def test_the_overlap_is_the_prescribed_share_of_the_second_part(size_a, size_b, overlap, seed):
    shared = round(overlap * size_b)
    if shared > size_a:
        with pytest.raises(UserError, match="cannot be shared"):
            overlapping_split(IDS, size_a, size_b, overlap, seed)
        return
    first, second = overlapping_split(IDS, size_a, size_b, overlap, seed)
    assert (len(set(first)), len(set(second))) == (size_a, size_b)
    assert len(set(first) & set(second)) == shared


def test_the_first_part_is_the_same_for_every_overlap_and_shared_items_do_not_come_first():
    parts = [overlapping_split(IDS, 40, 40, overlap, seed=3) for overlap in (0.0, 0.3, 1.0)]
    assert parts[0][0] == parts[1][0] == parts[2][0]
    first, second = parts[1]
    places = [place for place, name in enumerate(second) if name in first]
    assert places != list(range(12))


def test_impossible_overlaps_are_refused():
    with pytest.raises(UserError, match="need 120 items; there are 100"):
        overlapping_split(IDS, 60, 60, 0.0, 0)
    with pytest.raises(UserError, match=r"overlap is 1\.5"):
        overlapping_split(IDS, 10, 10, 1.5, 0)
    with pytest.raises(UserError, match="at least 1 item"):
        overlapping_split(IDS, 10, 0, 0.0, 0)


def test_deduplication_keeps_the_first_of_each_and_their_order():
    names = list("bbcabba")
    samples = [Sample((user(name),), meta={"row": row}) for row, name in enumerate(names)]
    kept = deduplicate(samples)
    assert [sample.prompt_text for sample in kept] == list(dict.fromkeys(names))
    assert [sample.meta["row"] for sample in kept] == sorted({names.index(name) for name in names})


def test_test_questions_are_taken_out_of_the_training_set():
    test = [Sample((user("How many apples are left on the tree?"),), answer="3")]
    same = Sample(
        ({"role": "system", "content": "x"}, user("How many apples are left on the tree?")), (assistant("3"),)
    )
    similar = Sample((user("Say, how many APPLES are left, on the tall tree?"),))
    other = Sample((user("How many pears are there?"),))
    text_only = Sample((), (assistant("text"),))
    train = [same, similar, other, text_only]
    assert decontaminate(train, test) == ([similar, other, text_only], [same])
    assert decontaminate(train, test, ngram=5) == ([other, text_only], [same, similar])
    assert decontaminate([text_only], [text_only]) == ([text_only], [])
