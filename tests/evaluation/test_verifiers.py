import json
import sys

import pytest

from posttrain.cli import main
from posttrain.errors import UserError
from posttrain.evaluation.verifiers import VERIFIERS, judge, labelled

# Right answers that are refused and wrong ones that are accepted, as they are known. A smaller number is recorded here;
# a larger one is a verifier that got worse. No row is taken out of a set for being misjudged.
KNOWN = {
    "number": (30, 6),
    "exact": (30, 0),
    "chains": (6, 1),
    "multiplication": (8, 1),
    "logic": (20, 0),
    "countdown": (8, 0),
    "general_points": (5, 3),
    "sokoban": (12, 3),
    "tool_calls": (2, 0),
    "tags": (3, 0),
    "program": (13, 0),
    "sql": (2, 10),
    "smt": (6, 1),
}
RUN_CODE = ("program", "sql", "smt")
COUNTS = ("right", "wrong")
ERRORS = ("false_negatives", "false_positives")


def skipped_elsewhere(name):
    if name in RUN_CODE and sys.platform != "linux":
        pytest.skip("programs are run on Linux alone")


@pytest.mark.parametrize("name", VERIFIERS)
def test_no_verifier_is_worse_than_it_was(name):
    skipped_elsewhere(name)
    found = judge(name)
    negatives, positives = (found.to_json()[key] for key in ERRORS)
    told = "\n".join(f"{one.error}: {one.answer.text!r}" for one in found.misjudged)
    assert negatives <= KNOWN[name][0], told
    assert positives <= KNOWN[name][1], told


@pytest.mark.parametrize("name", VERIFIERS)
def test_sets_are_large_and_have_both_labels(name):
    right = [answer.right for answer in labelled(name)]
    assert len(right) >= 40
    assert 10 <= sum(right) <= len(right) - 10


def test_the_command_prints_a_row_for_each_verifier(monkeypatch, capsys):
    quick = {name: VERIFIERS[name] for name in ("number", "tags")}
    monkeypatch.setattr("posttrain.evaluation.verifiers.VERIFIERS", quick)
    with pytest.raises(SystemExit) as end:
        main(["verifiers", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert end.value.code == 0
    assert [row["verifier"] for row in rows] == ["number", "tags"]
    for row in rows:
        for count, error in zip(COUNTS, ERRORS, strict=True):
            low, high = row[f"{error}_interval"]
            assert low <= row[f"{error}_rate"] == row[error] / row[count] <= high


def test_the_command_lists_what_a_verifier_misjudges(capsys):
    with pytest.raises(SystemExit):
        main(["verifiers", "--show", "tags", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == sum(KNOWN["tags"])
    assert {row["error"] for row in rows} == {"false negative"}
    assert {row["kind"] for row in rows} == {"tags spoken of"}


def test_a_person_sees_counts_rates_and_intervals(capsys):
    from posttrain.cli_verifiers import _cells

    cells = _cells(judge("tags"))
    assert cells["false negatives"].startswith("3 = 7.7 % (")


def test_an_unknown_verifier_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["verifiers", "--show", "numbr"])
    assert end.value.code == 2
    assert "did you mean 'number'?" in capsys.readouterr().err
    with pytest.raises(UserError, match="no verifier"):
        list(labelled("numbr"))
