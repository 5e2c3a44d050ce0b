import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.catalogue import FAMILIES, Paper, Status, exists, paper, papers, status
from posttrain.errors import UserError
from posttrain.recipe import shipped_recipes

SHEETS = Path(__file__).parents[2] / "shared" / "methods"


@pytest.fixture
def asft() -> Paper:
    return paper("asft")


def write_claims(folder: Path, name: str, verdicts: list[Any], number: int = 36) -> None:
    claims = [
        {"text": "t", "metric": "accuracy", "seeds": [0], "arms": {}, "effect": 0.1, "interval": [0, 0.2], "verdict": v}
        for v in verdicts
    ]
    content = {"paper": number, "claims": claims, "seconds": 1.0, "versions": {}, "machine": {}}
    (folder / name).write_text(json.dumps(content))


def test_every_number_from_1_to_53_is_there_once() -> None:
    assert [known.number for known in papers()] == list(range(1, 54))


def test_slugs_titles_and_arxiv_ids_are_unique() -> None:
    for field in ("slug", "title", "arxiv"):
        assert len({getattr(known, field) for known in papers()}) == len(papers())


def test_arxiv_ids_have_the_form_of_arxiv_ids() -> None:
    for known in papers():
        assert known.arxiv is None or re.fullmatch(r"\d{4}\.\d{5}", known.arxiv), known


def test_slugs_agree_with_the_names_of_the_sheets() -> None:
    if not SHEETS.is_dir():
        pytest.skip("method sheets (../shared/methods) are not beside this checkout")
    assert [known.key for known in papers()] == sorted(sheet.stem for sheet in SHEETS.glob("[0-9]*.md"))


def test_arxiv_ids_agree_with_the_sheets() -> None:
    if not SHEETS.is_dir():
        pytest.skip("method sheets (../shared/methods) are not beside this checkout")
    for known in papers():
        ids = re.findall(r"arXiv (\d{4}\.\d{5})", (SHEETS / f"{known.key}.md").read_text(encoding="utf-8"))
        assert known.arxiv == ids[0], known


def test_families_agree_with_the_table_of_the_sheets() -> None:
    if not SHEETS.is_dir():
        pytest.skip("method sheets (../shared/methods) are not beside this checkout")
    rows = dict(re.findall(r"^\| (.+?) \| (\d\d .+?) \|$", (SHEETS / "README.md").read_text(encoding="utf-8"), re.M))
    for known in papers():
        numbers = re.findall(r"(?:^|· )(\d\d) ", rows[FAMILIES[known.family]])
        assert f"{known.number:02d}" in numbers, known


def test_every_family_has_papers_and_every_paper_a_family() -> None:
    assert {known.family for known in papers()} == set(FAMILIES)


def test_pieces_are_named_by_room_and_piece() -> None:
    rooms = "data|tasks|curation|sources|rewards|advantages|objectives|adaptation|generation|policy|evaluation|training"
    for known in papers():
        assert known.pieces, known
        assert all(re.fullmatch(rf"({rooms})\.[a-z0-9_]+", piece) for piece in known.pieces), known


def test_what_a_paper_with_a_recipe_is_made_of_is_there() -> None:
    shipped = shipped_recipes()
    assert {known.key: known.planned for known in papers() if known.recipe in shipped and known.planned} == {}


@pytest.mark.parametrize(
    ("piece", "there"),
    [
        ("objectives.dft", True),  # registered
        ("sources.key_tokens", True),
        ("advantages.gae", True),
        ("generation.dialogue", True),  # a module
        ("evaluation.reranked", True),  # exported
        ("objectives.alignment", False),
        ("generation.transfer_q", False),
        ("advantages.batch", False),
    ],
)
def test_a_piece_is_there_or_planned(piece: str, there: bool) -> None:
    assert exists(piece) == there


def test_planned_pieces_are_told_from_those_that_are_there() -> None:
    symbolic = replace(paper(4), pieces=("tasks.logic", "rewards.telepathy"))
    assert (symbolic.built, symbolic.planned) == (("tasks.logic",), ("rewards.telepathy",))


@pytest.mark.parametrize("name", [36, "36", "asft", "36-asft"])
def test_a_paper_is_found_by_number_and_by_slug(name: int | str) -> None:
    assert paper(name).title == "Anchored Supervised Fine-Tuning"


def test_a_one_digit_number_is_found_with_and_without_its_zero() -> None:
    assert paper("06") == paper("6") == paper(6) == paper("ts-tldr")


def test_a_misspelt_slug_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown paper 'chordd': did you mean 'chord'"):
        paper("chordd")


@pytest.mark.parametrize("number", [0, 54, -1, "54"])
def test_a_number_out_of_range_names_the_range(number: int | str) -> None:
    with pytest.raises(UserError, match=f"no paper {number}: papers are numbered 1 to 53"):
        paper(number)


def test_a_paper_without_recipe_and_claim_is_planned_and_not_run(asft: Paper, tmp_path: Path) -> None:
    assert status(asft, ["sft"], None) == status(asft, [], tmp_path) == Status("planned", "not run")


def test_a_shipped_recipe_is_named(asft: Paper) -> None:
    assert status(asft, {"sft", "asft"}, None).recipe == "asft"


@pytest.mark.parametrize(
    ("verdicts", "claim"),
    [
        (["supported"], "supported"),
        (["supported", "supported"], "2 supported"),
        (["not supported"], "not supported"),
        (["inconclusive"], "inconclusive"),
        (["not supported", "supported"], "1 supported, 1 not supported"),
        (["inconclusive", "supported", "supported"], "2 supported, 1 inconclusive"),
    ],
)
def test_the_claim_sums_up_its_verdicts(asft: Paper, tmp_path: Path, verdicts: list[str], claim: str) -> None:
    write_claims(tmp_path, "36-asft.json", verdicts)
    assert status(asft, [], tmp_path).claim == claim


def test_the_claim_files_of_one_paper_are_counted_together(asft: Paper, tmp_path: Path) -> None:
    write_claims(tmp_path, "36-asft.json", ["supported"])
    write_claims(tmp_path, "36-more.json", ["inconclusive", "supported"])
    assert status(asft, [], tmp_path).claim == "2 supported, 1 inconclusive"


def test_a_claim_file_of_another_paper_changes_nothing(asft: Paper, tmp_path: Path) -> None:
    write_claims(tmp_path, "37-prefix-rft.json", ["supported"], number=37)
    assert status(asft, [], tmp_path).claim == "not run"


def test_a_claim_file_about_another_paper_than_its_name_is_refused(asft: Paper, tmp_path: Path) -> None:
    write_claims(tmp_path, "36-asft.json", ["supported"], number=22)
    with pytest.raises(UserError, match="is about paper 22, its name says 36"):
        status(asft, [], tmp_path)


def test_an_unknown_verdict_is_refused_and_named(asft: Paper, tmp_path: Path) -> None:
    write_claims(tmp_path, "36-asft.json", ["supported", "great"])
    with pytest.raises(UserError, match=r"claim 2 in .* has verdict 'great'; it must be one of: supported, not"):
        status(asft, [], tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"paper": 36, "claims": []}', '{"paper": 36, "claims": 3}'])
def test_a_claim_file_without_claims_is_refused(asft: Paper, tmp_path: Path, text: str) -> None:
    (tmp_path / "36-asft.json").write_text(text)
    with pytest.raises(UserError, match="has no list 'claims'"):
        status(asft, [], tmp_path)


def test_a_half_written_claim_file_is_refused(asft: Paper, tmp_path: Path) -> None:
    (tmp_path / "36-asft.json").write_text('{"paper": 36, "cla')
    with pytest.raises(UserError, match="is not JSON"):
        status(asft, [], tmp_path)


def test_a_verdict_that_is_no_word_is_refused(asft: Paper, tmp_path: Path) -> None:
    write_claims(tmp_path, "36-asft.json", [["supported"]])
    with pytest.raises(UserError, match=r"has verdict \['supported'\]"):
        status(asft, [], tmp_path)
