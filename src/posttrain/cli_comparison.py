"""The commands that compare: `posttrain compare`, `posttrain claim run` and `posttrain claim show`."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from posttrain.errors import UserError
from posttrain.recipe.yaml_text import yaml_value
from posttrain.terminal import Terminal, quiet_libraries

if TYPE_CHECKING:
    from posttrain.comparison.result import ComparisonResult
    from posttrain.comparison.runs import Checked
    from posttrain.comparison.spec import Comparison

Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at once; default: what the cores or GPUs have room for.")]
Cluster = Annotated[Literal["ray"] | None, typer.Option(help="Where the runs go; default: processes here.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines, also on a terminal.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan; run nothing.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the comparison; default: runs/compare/NAME.")]
ClaimsFolder = Annotated[Path, typer.Option("--claims", help="Folder of the claim files.")]

claims = typer.Typer(no_args_is_help=True, help="Papers' claims on a small machine: run them, show what came out.")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(compare)
    app.add_typer(claims, name="claim")


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="ARM...",
            help="Recipes, each with changes of its own (otr:lr=1e-4,objective.k=3), changes of all (batch_size=16), "
            "or one comparison: a file, or one that ships (continuum).",
            show_default=False,
        ),
    ],
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="ARM", help="One more arm, beside those of a file; again for another: srft:lr=1e-4."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="How many, or which: 3 is 0,1,2. Default: 3.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Budget of a run: optimiser steps.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Budget of a run: input tokens.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget of a run: seconds of training, by a pilot.")] = None,
    tune: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Values to try, of every arm alike.")
    ] = None,
    tune_on: Annotated[str | None, typer.Option(help="What is best: validation.accuracy.")] = None,
    jobs: Jobs = None,
    cluster: Cluster = None,
    out: Out = None,
    dry_run: Dry = False,
    json_output: Json = False,
) -> None:
    """Train each recipe from the same start with the same budget and seeds, and say what differs, and how surely.

    posttrain compare sft dft asft --seeds 3
    """
    given: dict[str, Any] = {"tune_on": tune_on, "seeds": _seeds(seeds)}
    budget = {"steps": steps, "tokens": tokens, "seconds": seconds}
    given["budget"] = {key: value for key, value in budget.items() if value is not None} or None
    given["tune"] = dict(_values(text) for text in tune or []) or None
    terminal = Terminal(json_output=json_output)
    spec = _spec(what, {key: value for key, value in given.items() if value is not None}, add or [])
    result = _compare(spec, out, jobs, cluster, terminal, dry_run)
    if result is not None:
        _leave(result)


@claims.command(name="run")
def run_claim(
    name: Annotated[str, typer.Argument(metavar="CLAIM", help="A paper's number or slug, or a YAML file.")],
    claims_folder: ClaimsFolder = Path("claims"),
    jobs: Jobs = None,
    cluster: Cluster = None,
    out: Out = None,
    dry_run: Dry = False,
    json_output: Json = False,
) -> None:
    """Run a paper's claim as its file says, and write down what came out."""
    from posttrain.comparison.claims import find_claim, write_claims
    from posttrain.comparison.spec import read_comparison

    terminal, path = Terminal(json_output=json_output), find_claim(name)
    spec = read_comparison(path)
    if not spec.claims:
        raise UserError(f"{path}: there are no claims in it; 'posttrain compare {path}' runs it")
    result = _compare(spec, out, jobs, cluster, terminal, dry_run)
    if result is None:
        return
    written = write_claims(result, claims_folder)
    for claim in result.claims:
        told = Text.assemble((claim.text, "bold"), "\n  ", claim.sentence)
        row = {"text": claim.text, "verdict": claim.verdict, "effect": claim.effect, "interval": claim.interval}
        terminal.event("claim", told, **row, sentence=claim.sentence)
    terminal.event("written", str(written), path=str(written))
    _leave(result)


@claims.command(name="show")
def show_claims(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CLAIM]...", help="Papers' numbers or slugs; default: all.", show_default=False),
    ] = None,
    claims_folder: ClaimsFolder = Path("claims"),
    json_output: Json = False,
) -> None:
    """Claims that were run, with what came out, as one table."""
    from posttrain.comparison.claims import read_claims
    from posttrain.comparison.tables import claim_row

    terminal, rows = Terminal(json_output=json_output), read_claims(claims_folder, names or ())
    if not rows:
        raise UserError(
            f"there are no claims in '{claims_folder}'; 'posttrain claim run' writes them, --claims says where"
        )
    columns = ["paper", "claim", "measured", "effect", "95 % interval", "seeds", "verdict"]
    shown = [claim_row(row) for row in rows] if terminal.interactive else rows
    terminal.table("", columns, shown, right=["effect", "95 % interval", "seeds"])


def _compare(
    spec: "Comparison", out: Path | None, jobs: int | None, cluster: str | None, terminal: Terminal, dry_run: bool
) -> "ComparisonResult | None":
    quiet_libraries(terminal)
    from posttrain.comparison import runs
    from posttrain.comparison.launching import Launcher, LocalProcesses, RayTasks
    from posttrain.training.loop import Interrupted

    root = out or Path("runs/compare") / spec.name
    checked = runs.check(spec, root, terminal)
    launcher: Launcher = RayTasks(jobs) if cluster == "ray" else LocalProcesses(jobs)
    _show_plan(checked, launcher.jobs, terminal)
    if dry_run:
        return None
    try:
        result = runs.compare(checked, launcher, terminal, shlex.join(["posttrain", *sys.argv[1:]]))
    except (Interrupted, KeyboardInterrupt):
        told = "stopped; what is done is kept: run the same command again to go on"
        terminal.event("interrupted", told, out=str(root))
        raise typer.Exit(130) from None
    _show(result, root, terminal)
    return result


def _spec(what: list[str], given: dict[str, Any], more: Sequence[str] = ()) -> "Comparison":
    """The comparison that the command line describes, or a file with what the command line changes and adds."""
    from posttrain.comparison.spec import check_comparison, read_comparison

    named = [text for text in what if "=" not in text.partition(":")[0]]
    changes = dict(_change(text) for text in what if text not in named)
    whole = _comparison_file(named[0]) if len(named) == 1 else None
    arms = _arms([*([] if whole is not None else named), *more])
    if whole is not None:
        added = {"set": changes, "arms": arms}
        return read_comparison(whole, given | {key: value for key, value in added.items() if value})
    if not arms:
        raise UserError(f"no recipe is named, only changes ({', '.join(what)}): posttrain compare sft dft {what[0]}")
    content = {"arms": arms, "set": changes, **given}
    return check_comparison({"name": _name(content), **content}, "posttrain compare")


def _arms(texts: list[str]) -> dict[str, Any]:
    """The arms that the command line names: `otr:lr=1e-4,objective.k=3` is called `otr-lr=0.0001-k=3`."""
    found: dict[str, Any] = {}
    for text in texts:
        recipe, _, own = text.partition(":")
        settings = dict(_change(each) for each in re.split(r",(?=[\w.]+=)", own)) if own else {}
        name = "-".join([Path(recipe).stem, *(f"{k.rpartition('.')[2]}={_in_a_name(v)}" for k, v in settings.items())])
        if name in found:
            raise UserError(f"arm '{name}' is there twice")
        found[name] = {"recipe": recipe, "set": settings}
    return found


def _name(content: dict[str, Any]) -> str:
    """A folder's name of the arms and the settings, but not of the seeds: more of them go on where fewer ended."""
    import hashlib
    import json

    settings = {key: value for key, value in content.items() if key != "seeds"}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=3).hexdigest()
    names = list(content["arms"])
    return f"{'-'.join(names) if len(names) < 5 else f'{len(names)}-arms'}-{digest}"


def _comparison_file(name: str) -> Path | None:
    """The file of comparison that a single name stands for: one of the user's, or one that ships (`continuum`)."""
    from posttrain.comparison.claims import shipped_claims
    from posttrain.recipe.reading import read_mapping

    if not name.endswith((".yaml", ".yml")):
        return shipped_claims().get(name)
    return Path(name) if "arms" in read_mapping(Path(name), "comparison", "arms")[0] else None


def _change(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"'{text}' is not of the form key=value")
    return key, yaml_value(value)


def _values(text: str) -> tuple[str, list[Any]]:
    key, separator, values = text.partition("=")
    if not separator or not values:
        raise UserError(f"--tune '{text}' is not of the form lr=1e-4,3e-4")
    return key, [_number(value) for value in values.split(",")]


def _number(text: str) -> Any:
    """YAML reads 1e-4 as text; as a number it is shown and compared as one."""
    value = yaml_value(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _seeds(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        return [int(seed) for seed in text.split(",") if seed] if "," in text else int(text)
    except ValueError:
        raise UserError(f"--seeds '{text}' is neither a number of seeds (3) nor a list of them (0,1,2)") from None


def _in_a_name(value: Any) -> str:
    return re.sub(r"[^\w+.-]", "_", str(value))


def _show_plan(checked: "Checked", jobs: int, terminal: Terminal) -> None:
    from posttrain.comparison.tables import arm_rows, estimated_time

    rows, seconds = arm_rows(checked), estimated_time(checked, jobs)
    if not terminal.interactive:
        fields: dict[str, Any] = {"name": checked.spec.name, "out": str(checked.root), "jobs": jobs, "arms": rows}
        fields |= {"set": checked.spec.set, "seeds": checked.spec.seeds, "estimated_seconds": seconds}
        return terminal.line({"event": "plan", **fields})
    from posttrain.comparison.wording import settings
    from posttrain.reporting.formats import duration

    spec = checked.spec
    runs = len(checked.recipes) * len(spec.seeds) + 1
    terminal.console.print(Text.assemble((spec.name, "bold"), "  ", spec.description, f"\n→ {checked.root}"))
    if spec.set:
        terminal.console.print(Text(f"all arms: {settings(spec.set)}"))
    columns = ["arm", "recipe", "changes", "steps", *(["tuning"] if spec.tune else [])]
    terminal.table("", columns, rows, right=["steps", "tuning"])
    time = f", very roughly {duration(seconds)}" if seconds is not None else ""
    terminal.console.print(f"{runs} runs with {len(spec.seeds)} seeds, {jobs} at once{time}")
    return None


def _show(result: "ComparisonResult", root: Path, terminal: Terminal) -> None:
    from posttrain.comparison.tables import MAIN, result_table

    columns, rows = result_table(result)
    if terminal.interactive:
        terminal.console.print()
        terminal.table("", columns, rows, right=columns[1:])
        for sentence in (*result.sentences, *(f"note: {note}" for note in result.notes)):
            terminal.console.print(Text(f"- {sentence}"))
    else:
        main = {each.name for each in result.measures if each.metric in MAIN}
        for found in result.estimates:
            if found.metric in main:
                terminal.line({"event": "estimate", **vars(found)})
        for contrast in result.contrasts:
            if contrast.metric in main and contrast.family == "first":
                terminal.line({"event": "difference", **vars(contrast)})
    for failure in result.failures:
        told = Text.assemble(("✗ ", "red"), f"{failure.arm} seed {failure.seed}: {failure.reason}")
        terminal.event("failure", told, **vars(failure))
    page = root / "comparison.html"
    terminal.event("finished", f"page: {page}", out=str(root), page=str(page), notes=result.notes)


def _leave(result: "ComparisonResult") -> None:
    if result.failures:
        raise typer.Exit(1)
