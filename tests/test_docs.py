"""What the pages say can be done: every link leads somewhere, every command is one that is understood."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from posttrain import cli_comparison
from posttrain.cli import app
from posttrain.comparison.arms import arm_recipe
from posttrain.comparison.claims import find_claim
from posttrain.comparison.spec import Comparison
from posttrain.recipe import read_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDERS = {"RECIPE", "NAME", "NN", "MODEL", "RUN"}
"""Words that a reader replaces: such a line is a form, not a command."""


def titles(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_something_that_is_there(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} is not there"
        assert not anchor or anchor in titles(target), f"{target.name} has no heading '#{anchor}'"


def commands(text: str) -> list[list[str]]:
    """The arguments of every `posttrain ...` in the code of a page: spans, and lines of blocks up to a comment."""
    text = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(r"^(?: {4,}|\t)?(?:\.venv/bin/)?posttrain (.+)$", text, re.MULTILINE)
    spans = re.findall(r"(?<!`)`(?:\.venv/bin/)?posttrain ([^`]+)`(?!`)", text)
    split = [shlex.split(re.sub(r"\s+#\s.*", "", each)) for each in (*lines, *spans)]
    return [words for words in split if not PLACEHOLDERS & set(words) and "..." not in words]


def _read_arms(spec: Comparison, *_: object) -> None:
    for arm in spec.arms:
        arm_recipe(spec, arm)


def understood(words: list[str]) -> None:
    """Raises for what the command line would refuse before it looks at files."""
    command = typer.main.get_command(app)
    context = command.make_context("posttrain", ["recipes"])
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
    if not words:
        return  # named in a sentence
    given = command.make_context(name, words, parent=context).params
    if name in ("run", "inspect") and "recipe" in given and not given["recipe"].endswith(".yaml"):
        read_recipe(given["recipe"], given["overrides"])
    elif name == "run" and "name" in given:
        find_claim(given["name"])
    elif name == "compare" and not given["what"][0].endswith(".yaml"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli_comparison, "_compare", _read_arms)
            cli_comparison.compare(**given)


def test_commands_are_found_in_spans_and_blocks_and_wrong_ones_are_refused() -> None:
    text = (
        "Say `posttrain run\nsft lr=1`, or\n\n    posttrain run sft \\\n      lr=2   # why\n\n`posttrain run RECIPE`\n"
    )
    assert commands(text) == [["run", "sft", "lr=2"], ["run", "sft", "lr=1"]]
    for wrong in ("run sftt", "run sft lrr=1", "runn sft", "compare sft --sed 3", "compare sft:lrr=1", "claim run 99"):
        with pytest.raises(Exception, match=r"(?i)did you mean|unknown|no such|known:"):
            understood(wrong.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_understood(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            understood(list(words))
        except Exception as error:
            raise AssertionError(f"posttrain {shlex.join(words)}: {error}") from error
