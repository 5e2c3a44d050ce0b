"""What is asked of Lean, tried with a script in its place: Lean itself was never run."""

import stat
from pathlib import Path

import pytest

from posttrain.rewards.lean import compare_propositions, is_plain, lean_command, verify_lean
from posttrain.tasks import tasks
from posttrain.tasks.answers import answered

# Accepts what has no `wrong` in it, and proves of two propositions only that the same text is the same.
STAND_IN = """#!/usr/bin/env python3
import sys
source = sys.stdin.read()
assert sys.argv[1:] == ["--memory", "4096", "--timeout", "400", "--stdin"], sys.argv
with open({log!r}, "a") as log:
    log.write(source + "\\n")
claim, _, proof = source.partition(" := by ")
left, _, right = claim.partition(" : Int) : ")[2].partition(" ↔ ")
if "41" in source or (proof and left != right):
    print("error: unsolved goals")
    sys.exit(1)
"""


@pytest.fixture
def lean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    command, log = tmp_path / "lean", tmp_path / "asked"
    command.write_text(STAND_IN.format(log=str(log)))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return log


def test_lean_is_used_where_it_is_on_the_path(lean: Path) -> None:
    task = tasks["autoformalisation"]()
    (sample,) = task.samples(1, 1)
    assert sample.meta["language"] == "lean"
    assert verify_lean(sample, sample.response_text).value == task.verify(sample, sample.response_text).value == 1
    first, second = lean.read_text().splitlines()[:2]
    assert first == f"example {sample.meta['declarations']} : Prop := ({sample.answer})"
    assert f": ({sample.answer}) ↔ ({sample.answer}) := by first | exact Iff.rfl | omega" in second


def test_what_lean_refuses_does_not_compile(lean: Path) -> None:
    binders = "(m n : Int)"
    command = str(lean_command())
    assert compare_propositions("m > 41", "m > n", binders, command).verdict == "malformed"
    assert compare_propositions("m < n", "m > n", binders, command).verdict == "undecided"


def test_without_lean_its_answers_cannot_be_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tasks["autoformalisation"]().language == "smt"
    task = tasks["autoformalisation"](language="lean")
    (sample,) = task.samples(1, 1)
    assert "not on the PATH" in str(task.verify(sample, answered("m > n")).error)


@pytest.mark.parametrize(
    "text",
    [
        "True := by trivial\n#eval IO.println 1",
        "by exact (m > n)",
        "m > n ∧ sorry",
        "m > k",
        "∀ by : Int, by > m",
        'm > n -- "x"',
        "m > n\nrun_cmd m",
        "λ x => x",
        "m › n",
    ],
)
def test_nothing_but_a_plain_formula_reaches_lean(text: str) -> None:
    assert not is_plain(text, "(m n : Int)")


@pytest.mark.parametrize(
    "text", ["(m > n)", "∀ x : Int, (x > m → ¬(x = 3))", "∃ x : Int, ((x < m) ∧ (x ≥ n + 2))", "m ↔ n"]
)
def test_plain_formulas_are_let_through(text: str) -> None:
    assert is_plain(text, "(m n : Int)")
