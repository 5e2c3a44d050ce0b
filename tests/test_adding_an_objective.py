"""docs/adding-an-objective.md is run as it stands."""

import re
from pathlib import Path

import yaml

from posttrain.objectives import build_objective
from posttrain.recipe import read_recipe
from posttrain.registry import import_pieces
from posttrain.run import run
from posttrain.terminal import Terminal

PAGE = Path(__file__).parents[1] / "docs" / "adding-an-objective.md"


def blocks() -> dict[str, str]:
    """File name -> content of the page's named code blocks."""
    return dict(re.findall(r"```\w+ (\S+)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))


def test_the_page_trains_with_its_own_loss(tmp_path, monkeypatch):
    for name, content in blocks().items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    outcome = run(read_recipe("my-recipe.yaml"), Terminal(quiet=True))
    assert outcome.stages["softened"]["steps"] == 4
    assert (tmp_path / "runs" / "my-recipe" / "models" / "softened" / "model.safetensors").is_file()

    import_pieces(["confident.py"])
    terms = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[1])["objective"]
    assert [term.name for term in build_objective(terms).terms] == ["softened", "nll"]
    assert build_objective("confident").terms[0].needs[0].name == "entropy"


def test_the_loss_of_the_page_is_short():
    assert len(blocks()["my_losses.py"].strip().splitlines()) < 20
