import itertools
import sys
from dataclasses import replace

import pytest

from posttrain.tasks import tasks
from posttrain.tasks.answers import answered
from posttrain.tasks.sql import TEMPLATES, SqlTask

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="queries are run on Linux alone")


@pytest.mark.parametrize("difficulty", ["in", "harder"])
@pytest.mark.parametrize("style", ["direct", "steps"])
def test_demonstrations_are_right(difficulty, style):
    samples = tasks["sql"]().samples(25, 1, difficulty=difficulty, style=style)
    for sample in samples:
        score = SqlTask().verify(sample, sample.response_text)
        assert (score.value, score.error) == (1, None), sample.response_text
    assert len({sample.meta["template"] for sample in samples}) == len(TEMPLATES[difficulty])


def test_the_answers_to_other_questions_are_wrong():
    samples = SqlTask().samples(40, 2)
    wrong = right = 0
    for sample, other in itertools.pairwise(samples):
        if sample.answer != other.answer:
            score = SqlTask().verify(sample, other.response_text)
            wrong, right = wrong + (score.value == 0), right + (score.value == 1)
    assert right <= 0.05 * wrong


def test_another_way_to_say_it_is_right_too():
    (sample,) = [s for s in SqlTask().samples(60, 3) if s.meta["template"] == "where"][:1]
    other = sample.answer.replace("SELECT name", "select t.name").replace(" WHERE", " as t WHERE")
    assert SqlTask().verify(sample, answered(other)).value == 1
    assert SqlTask().verify(sample, f"```sql\n{other};\n```").value == 1


def test_rows_have_to_be_in_the_order_asked_for():
    (sample,) = [s for s in SqlTask().samples(60, 4) if s.meta["template"] == "sorted"][:1]
    turned = sample.answer.removesuffix(" DESC") if sample.answer.endswith("DESC") else f"{sample.answer} DESC"
    assert SqlTask().verify(sample, answered(turned)).value == 0


def test_parts_share_no_question():
    texts = {
        part: {sample.prompt_text.rpartition("\n")[2] for sample in SqlTask(part=part).samples(60, 0)}
        for part in ("train", "test")
    }
    assert not texts["train"] & texts["test"]


def test_the_same_seed_gives_the_same_problems():
    assert SqlTask().samples(10, 5) == SqlTask().samples(20, 5)[:10]
    assert SqlTask().samples(3, 5) != SqlTask().samples(3, 6)


def test_a_sample_without_its_databases_is_an_error():
    (sample,) = SqlTask().samples(1, 0)
    score = SqlTask().verify(replace(sample, answer="SELECT nothing"), sample.response_text)
    assert "fails" in score.error
