from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import UserError
from posttrain.tasks.facts import ATTRIBUTES, Facts, fact_table

TASK = Facts()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    difficulty=st.sampled_from(["in", "harder"]),
    style=st.sampled_from(Facts.styles),
    part=st.sampled_from(["train", "test", "any"]),
)
def test_every_demonstration_is_right_and_other_answers_are_wrong(seed, difficulty, style, part):
    task = Facts(part=part)
    for sample in task.samples(20, seed, difficulty=difficulty, style=style):
        assert task.verify(sample, sample.response_text).value == 1
        assert task.verify(sample, f"<answer>{sample.answer}s</answer>").value == 0
        assert task.verify(sample, "<answer></answer>").value == 0


def test_all_facts_of_a_table_can_be_drawn_and_no_more():
    task = Facts(size=20, part="train")
    samples = task.samples(100, 0)
    assert {(s.meta["person"], s.meta["attribute"]) for s in samples} == {
        (p, a) for p in task.table for a in ATTRIBUTES
    }
    assert all(task.table[s.meta["person"]][s.meta["attribute"]] == s.answer for s in samples)
    with pytest.raises(UserError, match="only about 100 distinct"):
        task.samples(101, 0)
    assert len(Facts(size=20).samples(200, 0)) == 200


def test_parts_are_two_wordings_of_the_same_facts_in_the_same_order():
    train, test = (Facts(part=part).samples(300, 4) for part in ("train", "test"))
    assert [(s.meta["person"], s.meta["attribute"], s.answer) for s in train] == [
        (s.meta["person"], s.meta["attribute"], s.answer) for s in test
    ]
    assert not {s.prompt_text for s in train} & {s.prompt_text for s in test}
    assert {s.meta["part"] for s in train} == {"train"}
    assert {s.meta["part"] for s in TASK.samples(100, 0)} == {"train", "test"}


def test_a_question_always_has_the_same_answer():
    for difficulty in ("in", "harder"):
        answers: dict[str, str] = {}
        for seed in range(4):
            for sample in TASK.samples(500, seed, difficulty=difficulty):
                assert answers.setdefault(sample.prompt_text, sample.answer) == sample.answer


def test_harder_questions_take_two_facts():
    for sample in Facts(part="train").samples(200, 0, difficulty="harder", style="sentence"):
        teacher = TASK.table[sample.meta["person"]]["teacher"]
        assert sample.answer == TASK.table[teacher][sample.meta["attribute"]]
        assert f"the teacher of {sample.meta['person']}" in sample.prompt_text
        assert teacher not in sample.prompt_text
        assert sample.response_text.startswith(f"<think>The teacher of {sample.meta['person']} is {teacher}. ")


def test_values_are_balanced_and_people_have_names_of_their_own():
    table = fact_table(3, 200)
    assert len(table) == 200
    for attribute in ATTRIBUTES:
        counts = Counter(row[attribute] for row in table.values())
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(counts) == (200 if attribute == "teacher" else 16)
    assert all(row["teacher"] != person for person, row in table.items())


def test_no_attribute_tells_another():
    table = fact_table(0, 2000)
    pairs = Counter((row["town"], row["job"]) for row in table.values())
    assert len(pairs) > 200
    assert max(pairs.values()) < 30


def test_the_table_depends_on_its_seed_and_the_questions_on_theirs():
    assert fact_table(1, 50) == fact_table(1, 50) != fact_table(2, 50)
    assert TASK.samples(50, 1) == TASK.samples(50, 1) != TASK.samples(50, 2)
    assert [s.prompt_text for s in TASK.samples(50, 1)] == [
        s.prompt_text for s in TASK.samples(50, 1, style="sentence")
    ]
    assert Facts(table_seed=1).samples(50, 1) != TASK.samples(50, 1)


@pytest.mark.parametrize("size", [0, 2, 2001])
def test_a_table_of_an_impossible_size_is_refused(size):
    with pytest.raises(UserError, match=f"size is {size}; give 3 to 2000"):
        Facts(size=size)
