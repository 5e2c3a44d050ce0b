"""Formulas compared by z3: sheet 44's reward and its pitfalls."""

import os
import platform
import re
import signal
import sys
from pathlib import Path

import pytest

from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.rewards import smt
from posttrain.rewards.smt import (
    COMPILED,
    JUDGED,
    Comparison,
    compare_formulas,
    formula_text,
    gate,
    single_term,
    verify_smt,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="z3 is limited and isolated on Linux alone")

INTEGERS = "(declare-const a Int)(declare-const b Int)"
SAMPLE = Sample((user("a is more than b"),), answer="(> a b)", meta={"declarations": INTEGERS})


def reason(answer: str, sample: Sample = SAMPLE) -> str:
    return str(verify_smt(sample, answer).info["reason"])


def test_a_formula_is_worth_nothing_where_it_does_not_compile() -> None:
    """The sheet's check 2; a judge that cannot say is 0, too."""
    assert (gate(False, 0.8), gate(True, 0.8)) == (0, 0.8)
    assert JUDGED.get("undecided", 0.0) == 0


@pytest.mark.parametrize(
    "formula",
    [
        "(> a b)",
        "(< b a)",
        "(not (<= a b))",
        "(>= a (+ b 1))",
        "(> (- a b) 0)",
        "(assert (> a b))",
        "(> a b) ; as it was said",
        "(let ((x a)) (> x b))",
        "(exists ((x Int)) (and (> x 0) (= a (+ b x))))",
        "(forall ((x Int)) (=> (>= x a) (> x b)))",
    ],
)
def test_whatever_is_equivalent_means_the_same(formula: str) -> None:
    score = verify_smt(SAMPLE, f"<answer>{formula}</answer>")
    assert (score.value, score.parts) == (1, {"correct": 1, "format": 1, "compiles": 1, "judged": 1})


@pytest.mark.parametrize(
    ("formula", "verdict"),
    [
        ("(>= a b)", "weaker"),
        ("(not (= a b))", "weaker"),
        ("(> a (+ b 1))", "stronger"),
        ("(and (> a b) (> b 0))", "stronger"),
        ("(= a b)", "other"),
        ("(> b a)", "other"),
    ],
)
def test_more_or_less_than_was_said_is_half_right(formula: str, verdict: str) -> None:
    score = verify_smt(SAMPLE, f"<answer>{formula}</answer>")
    assert score.info["reason"] == verdict
    assert (score.value, score.parts["compiles"]) == (0 if verdict == "other" else 0.5, 1)


@pytest.mark.parametrize("formula", ["true", "(= a a)", "(or (> a b) (<= a b))", "(exists ((x Int)) (> x a))"])
def test_what_always_holds_compiles_and_is_worth_nothing(formula: str) -> None:
    score = verify_smt(SAMPLE, f"<answer>{formula}</answer>")
    assert (score.info["reason"], score.parts["compiles"], score.value) == ("tautology", 1, 0)


def test_what_never_holds_compiles_and_is_worth_nothing() -> None:
    score = verify_smt(SAMPLE, "<answer>(and (> a b) (> b a))</answer>")
    assert (score.info["reason"], score.parts["compiles"], score.value) == ("contradiction", 1, 0)


@pytest.mark.parametrize(
    "formula",
    [
        "(> a c)",  # undeclared
        "(> a",
        "> a b",
        "(> a b))",
        "(> a b) (> a b)",
        "a",  # no Bool
        "(+ a b)",
        "(more a b)",
        "a > b",
        '(= a "b")',
        "(> a b)) (declare-const c Int) (assert (> a c)",
        "(" * 3000 + ")" * 3000,
    ],
)
def test_what_z3_cannot_read_does_not_compile(formula: str) -> None:
    score = verify_smt(SAMPLE, f"<answer>{formula}</answer>")
    assert (score.info["reason"], score.parts["compiles"], score.value, score.error) == ("malformed", 0, 0, None)


def test_nothing_but_a_term_reaches_z3() -> None:
    assert single_term("(> a b)\n(exit)") is None
    assert single_term("true)(exit") is None
    assert single_term("|a b|") is None
    assert single_term("( assert ( > a b ) )") == "( > a b )"
    assert single_term("") is None


def test_no_answer_is_missing_and_the_right_formula_has_to_be_one() -> None:
    assert reason("<answer> </answer>") == "missing"
    broken = Sample((user("?"),), answer="(> a", meta=SAMPLE.meta)
    assert "is no term" in str(verify_smt(broken, "<answer>true</answer>").error)
    with pytest.raises(UserError, match="cannot read the right formula"):
        compare_formulas("true", "(> a nothing)", INTEGERS)


def test_the_formula_is_found_in_tags_in_a_fence_or_alone() -> None:
    assert formula_text("<think>(= a 1)</think><answer>(> a b)</answer>") == "(> a b)"
    assert formula_text("So:\n```smt2\n(> a b)\n```\n") == "(> a b)"
    assert formula_text(" `(> a b)` ") == "(> a b)"


def test_what_z3_cannot_decide_is_not_the_same() -> None:
    hard = "(exists ((x Int) (y Int) (z Int)) (= (+ (* x x x) (* y y y) (* z z z)) a))"
    assert reason(f"<answer>{hard}</answer>") in ("undecided", "other")


def test_the_same_question_is_answered_alike_whatever_came_before() -> None:
    first = compare_formulas.__wrapped__("(>= a b)", "(> a b)", INTEGERS)
    for formula in ("(> a c)", "(= a 3)", "(forall ((x Int)) (> x a))"):
        compare_formulas.__wrapped__(formula, "(> a b)", INTEGERS)
    assert compare_formulas.__wrapped__("(>= a b)", "(> a b)", INTEGERS) == first == Comparison("weaker")


def test_what_z3_does_not_judge_in_time_is_an_error_and_z3_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    compare_formulas.__wrapped__("(>= a b)", "(> a b)", INTEGERS)
    monkeypatch.setattr(smt, "SECONDS", 0.2)
    os.kill(smt._workers.idle[-1].process.pid, signal.SIGSTOP)
    found = verify_smt(SAMPLE, "<answer>(< 0 a)</answer>")
    assert str(found.error) == "z3 did not judge ( < 0 a ): no reply within 0.2 s"
    monkeypatch.undo()
    assert verify_smt(SAMPLE, "<answer>(< 0 a)</answer>").error is None, "and is not remembered"


def test_z3_works_in_a_process_without_privileges_files_and_much_memory() -> None:
    compare_formulas.__wrapped__("(>= a b)", "(> a b)", INTEGERS)
    process = Path(f"/proc/{smt._workers.idle[-1].process.pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert (status["NoNewPrivs"], int(status["CapEff"], 16)) == ("1", 0)
    if platform.machine() in ("x86_64", "aarch64"):
        assert status["Seccomp"] == "2"
    limits = (process / "limits").read_text()
    assert re.search(r"Max address space +2147483648 +2147483648", limits)
    assert re.search(r"Max processes +0 +0", limits)


def test_every_verdict_has_its_place() -> None:
    assert set(JUDGED) <= set(COMPILED)
    assert {"malformed", "missing"}.isdisjoint(COMPILED)
