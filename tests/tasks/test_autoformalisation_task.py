import sys

import pytest

from posttrain.rewards.smt import compare_formulas
from posttrain.tasks import tasks
from posttrain.tasks.answers import answered
from posttrain.tasks.autoformalisation import TEMPLATES, Autoformalisation, Formula

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="z3 is limited and isolated on Linux alone")


@pytest.fixture
def task() -> Autoformalisation:
    found = tasks["autoformalisation"](language="smt")
    assert isinstance(found, Autoformalisation)
    return found


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_demonstrations_are_right(task, difficulty):
    samples = task.samples(40, 1, difficulty=difficulty)
    assert [task.verify(sample, sample.response_text).value for sample in samples] == [1] * 40
    assert {sample.meta["template"] for sample in samples} <= set(TEMPLATES[difficulty])


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_no_statement_holds_always_or_never(task, difficulty):
    for sample in task.samples(40, 2, difficulty=difficulty):
        verdict = compare_formulas(sample.answer, "(= 1 1)", sample.meta["declarations"]).verdict
        assert verdict == "stronger", sample.answer


def test_every_kind_of_statement_comes(task):
    kinds = [sample.meta["template"] for sample in task.samples(220, 3)]
    assert min(kinds.count(kind) for kind in TEMPLATES["in"]) >= 5


def test_a_statement_is_written_in_both_languages():
    x, m = Formula("x"), Formula("m")
    inner = Formula("=>", (Formula(">=", (x, m)), Formula("not", (Formula("=", (x, Formula("3"))),))))
    formula = Formula("forall", (inner,))
    assert formula.smt() == "(forall ((x Int)) (=> (>= x m) (not (= x 3))))"
    assert formula.lean() == "(∀ x : Int, ((x ≥ m) → ¬(x = 3)))"
    both = Formula("=", (Formula(">", (x, m)), Formula("<", (m, x))))
    assert (both.smt(), both.lean()) == ("(= (> x m) (< m x))", "((x > m) ↔ (m < x))")


def test_names_of_other_statements_do_not_compile(task):
    sample = next(s for s in task.samples(50, 4) if s.meta["template"] == "single")
    unknown = next(name for name in ("big", "calm", "cold") if f"-const {name} " not in sample.meta["declarations"])
    score = task.verify(sample, answered(f"(> {unknown} 1)"))
    assert (score.info["reason"], score.parts["compiles"]) == ("malformed", 0)


def test_parts_share_no_statement():
    texts = [
        {s.prompt_text for s in tasks["autoformalisation"](language="smt", part=p).samples(80, 0)}
        for p in ("train", "test")
    ]
    assert not texts[0] & texts[1]
