import json
import sys

import pytest

from posttrain.errors import UserError
from posttrain.tasks import tasks
from posttrain.tasks.answers import answered
from posttrain.tasks.first_order import read_formula

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="z3 is limited and isolated on Linux alone")

STORY = {
    "premises": ["All people who drink coffee  are dependent.", "Rina jokes or is unaware.", "Broken.", "Unbound."],
    "premises-FOL": ["∀x (Drinks(x) → Dependent(x))", "Jokes(rina) ⊕ Unaware(rina)", "∀x (Drinks(x)", "Drinks(x)"],
}


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "stories.jsonl"
    odd = {"premises": ["A.", "B."], "premises-FOL": ["P(a)"]}
    path.write_text("\n".join(json.dumps(row) for row in (STORY, STORY, odd)))
    return tasks["folio"](path=str(path))


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("P(a)", "(|P| |a|)"),
        ("¬P(a) ∧ Q(a) ∨ R", "(or (and (not (|P| |a|)) (|Q| |a|)) |R|)"),
        ("P(a) → Q(a) → R", "(=> (|P| |a|) (=> (|Q| |a|) |R|))"),
        ("P ⊕ Q → R", "(=> (xor |P| |Q|) |R|)"),
        ("P <-> Q & ~R", "(= |P| (and |Q| (not |R|)))"),
        ("∀x ∃y (Likes(x, y))", "(forall ((|x| Thing)) (exists ((|y| Thing)) (|Likes| |x| |y|)))"),
        ("∀x P(x) ∧ Q(a).", "(and (forall ((|x| Thing)) (|P| |x|)) (|Q| |a|))"),
        ("Risk-averse(y42.3billion)", "(|Risk-averse| |y42.3billion|)"),
    ],
)
def test_formulas_are_read_as_books_write_them(text, term):
    assert read_formula(text).term == term


@pytest.mark.parametrize(
    "text", ["", "P(", "P(a))", "(P(a)", "P(a) Q(b)", "P(x)", "∀ (P(x))", "P(a,)", "P(f(a))", "P | Q", "∧ P"]
)
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(ValueError, match=r"stands where|is no sign|not bound"):
        read_formula(text)


def test_premises_come_once_with_the_names_of_their_formula(task):
    samples = task.samples(10, 0)
    assert sorted(sample.prompt_text for sample in samples) == [
        "Formalise: All people who drink coffee are dependent.\nNames: Dependent(x), Drinks(x)",
        "Formalise: Rina jokes or is unaware.\nNames: Jokes(x), Unaware(x); rina",
    ]
    assert task.passed_over == 4
    assert all(task.verify(sample, sample.response_text).value == 1 for sample in samples)


def test_equivalent_formulas_are_right_and_stronger_ones_half(task):
    sample = next(s for s in task.samples(10, 0) if "coffee" in s.prompt_text)
    values = {
        "∀y (¬Dependent(y) → ¬Drinks(y))": 1,
        "¬∃z (Drinks(z) ∧ ¬Dependent(z))": 1,
        "∀x (Drinks(x) ↔ Dependent(x))": 0.5,
        "∃x (Drinks(x) → Dependent(x))": 0.5,
        "∀x (Dependent(x) → Drinks(x))": 0,
        "∀x (Drinks(x) → Drinks(x))": 0,
        "∀x (Sleeps(x) → Dependent(x))": 0,
        "∀x (Drinks(x) → Dependent(x)": 0,
    }
    scores = {formula: task.verify(sample, answered(formula)) for formula in values}
    assert {formula: score.value for formula, score in scores.items()} == values
    compiled = [score.parts["compiles"] for score in scores.values()]
    assert compiled == [1, 1, 1, 1, 1, 1, 0, 0]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"premises": "one text", "premises-FOL": []}')
    with pytest.raises(UserError, match="should be a list of texts"):
        tasks["folio"](path=str(path)).samples(1, 0)


def test_folio_itself_is_read(shared_data):
    for name, premises, passed_over in (("train", 1620, 34), ("validation", 342, 27)):
        task = tasks["folio"](path=str(shared_data / "folio" / f"{name}.jsonl"))
        samples = task.samples(15, 0)
        assert (len(task.rows), task.passed_over) == (premises, passed_over)
        assert [task.verify(sample, sample.response_text).value for sample in samples] == [1] * 15
