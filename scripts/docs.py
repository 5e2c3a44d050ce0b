"""Write what is generated: `python scripts/docs.py`. `--check` only compares.

docs/recipes.md, docs/methods.md, docs/unified-view.md, the table of benchmarks/README.md, and in docs/methods/ what
claims showed (with their figures) and what a step costs, where a page says `<!-- claim:NN -->` or `<!-- cost:NAME -->`.
"""

import re
import sys
from collections.abc import Iterable
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from measured import benchmark_page, method_pages
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from unified_view import page

from posttrain.adaptation import adapters
from posttrain.advantages import advantages
from posttrain.catalogue import FAMILIES, papers, status
from posttrain.curation import curations
from posttrain.objectives import objectives
from posttrain.recipe import Plans, Revise, Thinking, fields, inputs, rollouts, shipped_recipes, training
from posttrain.registry import Registry
from posttrain.rewards import rewards
from posttrain.schedules import schedules
from posttrain.sources import transforms
from posttrain.sources.beginnings import beginnings
from posttrain.sources.temperature import temperatures
from posttrain.tasks import tasks

ROOT = Path(__file__).parents[1]
HEAD = "<!-- Made by `python scripts/docs.py`. -->\n\n"


def cell(text: Any) -> str:
    """Text that can stand in a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def kind_of(annotation: Any) -> str:
    """A type as a reader of YAML would say it."""
    if get_origin(annotation) is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    text = getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"posttrain\.recipe\.\w+\.|typing\.|annotated_types\.", "", text).replace("NoneType", "null")
    return text.split("Annotated[")[-1].split(", Gt(")[0].split(", BeforeValidator")[0].split(", FieldInfo")[0]


def table(model: type[BaseModel]) -> str:
    """The fields of a recipe's part."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.default is PydanticUndefined and not field.default_factory else field.default
        plain = getattr(default, "path", default)
        shown = "required" if plain == "required" else "" if plain in ("", None) else f"`{cell(plain)}`"
        lines.append(f"| `{name}` | {cell(kind_of(field.annotation))} | {shown} | {cell(field.description or '')} |")
    return "\n".join(lines)


def described(model: type[BaseModel]) -> str:
    """What a recipe's part says of itself, and its fields."""
    return f"{cleandoc(model.__doc__ or '')}\n\n{table(model)}"


def pieces(registry: Registry[Any]) -> Iterable[str]:
    """The pieces of a room with their options and what they say of themselves."""
    for name in registry:
        options = ", ".join(f"`{key}={value!r}`" for key, value in registry.defaults(name).items())
        summary = (registry[name].__doc__ or "").strip().splitlines()[0]
        yield f"- **{name}**: {summary}{f' Options: {options}.' if options else ''}"


def recipes_page() -> str:
    """docs/recipes.md."""
    parts = [
        HEAD + "# Recipes\n\nA recipe is a YAML file: named models, named data sets, and stages that read and write "
        "them. "
        "Unknown keys are errors. Overrides on the command line are dotted paths: `data.train=my.jsonl`, "
        "`sft.lr=1e-4` (a stage's name), or `lr=1e-4` (every stage that has such a key). Paths are relative to where "
        "the command runs.",
        "`resume` means to go on with a run that was cut off, with everything as it was; `init_from` means to start "
        "from a model's weights, and from nothing else of it.",
        f"## The recipe\n\n{table(fields.Recipe)}",
        f"## A model\n\n{table(inputs.Model)}",
        f"## A data set\n\n{table(inputs.Data)}",
        "Rows are read in the ecosystem's shapes: `messages` (`[{role, content}, ...]`), `prompt` with `completion`, "
        "`prompt` with `chosen` and `rejected`, Alpaca, ShareGPT, `question` with `answer` (GSM8K). A column `answer` "
        "beside the first two holds the right answer of a row: what drawn answers are scored against. Without it an "
        "evaluation measures how likely the given responses are (perplexity) and draws none, and `generate` can keep "
        "`all` of its answers, but not choose.",
        f"## A server\n\n{described(rollouts.Server)}",
    ]
    for name, model in fields.STAGE_KINDS.items():
        parts.append(f"## Stage `{name}`\n\n{described(model)}")
    sections: dict[str, type[BaseModel]] = {"watch": training.Watch, "early_stopping": training.EarlyStop}
    sections |= {"thinking": Thinking, "plans": Plans, "plans.revise": Revise, "rollouts": rollouts.RolloutSource}
    sections |= {"rollouts.server": rollouts.RolloutServer, "demonstrations": rollouts.DemonstrationsBeside}
    for name, model in sections.items():
        parts.append(f"### `{name}`\n\n{described(model)}")
    rooms = {"Objectives": objectives, "Advantages": advantages, "Rewards": rewards, "Transforms": transforms}
    rooms |= {"Adapters": adapters, "Tasks": tasks, "Curation": curations}
    rooms |= {"Beginnings of answers": beginnings, "Schedules": schedules, "Temperatures": temperatures}
    for title, registry in rooms.items():
        parts.append(f"## {title}\n\n" + "\n".join(pieces(registry)))
    shipped = "\n".join(f"- `{name}`" for name in shipped_recipes())
    parts.append(f"## Shipped recipes\n\n{shipped}")
    return "\n\n".join(parts) + "\n"


def methods_page() -> str:
    """docs/methods.md."""
    shipped = shipped_recipes()
    lines = [
        HEAD + "# The 53 papers\n",
        "Made of: the parts of the library that a method uses, `room.piece`. What stands in *italics* is planned and "
        "not there yet; so is a method without a recipe.\n",
        "| | paper | arXiv | family | made of | recipe | claim |",
        "|---|---|---|---|---|---|---|",
    ]
    for paper in papers():
        found = status(paper, shipped, ROOT / "claims")
        link = f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
        made_of = ", ".join([*(f"`{piece}`" for piece in paper.built), *(f"*{piece}*" for piece in paper.planned)])
        row = (paper.number, cell(paper.title), link, FAMILIES[paper.family], made_of, found.recipe, found.claim)
        lines.append(f"| {' | '.join(str(value) for value in row)} |")
    return "\n".join(lines) + "\n"


def generated() -> dict[Path, str]:
    """Every generated file with its text."""
    docs = ROOT / "docs"
    pages = {docs / "recipes.md": recipes_page(), docs / "methods.md": methods_page()}
    pages |= {docs / "unified-view.md": HEAD + page()}
    return pages | {ROOT / "benchmarks" / "README.md": benchmark_page(ROOT)} | method_pages(ROOT)


def main(check: bool) -> int:
    """Write the files, or say which are out of date."""
    stale = []
    for path, text in generated().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run python scripts/docs.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
