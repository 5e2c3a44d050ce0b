"""The commands: each parses, calls and prints. What is slow to import is imported by the command that needs it."""

import errno
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from posttrain import catalogue, cli_comparison, cli_verifiers
from posttrain.errors import UserError
from posttrain.recipe import Recipe, read_recipe, shipped_recipes
from posttrain.terminal import Terminal, quiet_libraries

if TYPE_CHECKING:
    from posttrain.reporting.summary import Line

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.PATH=VALUE", help="Changes to the recipe: lr=1e-4 data.train=my.jsonl sft.epochs=3"),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="'tiny', a model or adapter folder, or a hub name.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="JSON lines, also on a terminal.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "mixed"], typer.Option(help="How the model is held; bfloat16 takes half the memory.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("posttrain"))
        raise typer.Exit


@app.callback()
def posttrain(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in the line).")
    ] = False,
) -> None:
    """Turn a pretrained language model into a better one: supervised fine-tuning, reinforcement learning, and what is
    between them.

    To begin with: posttrain recipes, posttrain inspect sft, posttrain run demo.
    """


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; train nothing.")
    ] = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe, or go on with a run that was cut off."""
    terminal, checked = Terminal(json_output=json_output, quiet=quiet), read_recipe(recipe, overrides)
    if not dry_run:
        return _execute(checked, terminal)
    quiet_libraries(terminal)
    from posttrain.run import plan, show_plan

    show_plan(terminal, checked, plan(checked, terminal))
    return None


@app.command()
def inspect(
    recipe: RecipeName,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=0, help="How many samples to show.")] = 3,
    stage: Annotated[str | None, typer.Option(help="Which stage; default: the first that trains.")] = None,
    json_output: Json = False,
) -> None:
    """Show samples as the model will see them: every token, and which of them are trained."""
    terminal, checked = Terminal(json_output=json_output), read_recipe(recipe, overrides)
    quiet_libraries(terminal)
    from posttrain import inspection
    from posttrain.stages import Context
    from posttrain.training.ranks import Ranks

    name = inspection.inspected_stage(checked, stage)
    inspection.show(inspection.inspect(Context(checked, Ranks(), terminal), name, count), terminal)


@app.command(name="eval")
def evaluate(
    model: ModelName,
    task: Annotated[str | None, typer.Option(help="Whose problems: chains, countdown, gsm8k ...")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the task.")] = None,
    data: Annotated[Path | None, typer.Option(help="A file of questions and answers, instead of a task.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many problems; default: 300, of a file all.")] = None,
    difficulty: Annotated[Literal["in", "harder"], typer.Option(help="Of the task's problems.")] = "in",
    n: Annotated[int, typer.Option(min=1, help="Answers to each problem.")] = 1,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 256,
    dtype: Dtype = "float32",
    template: Annotated[Literal["chat", "none"], typer.Option(help="'none': plain text, for base models.")] = "chat",
    seed: Annotated[int, typer.Option(help="Of the problems and the draws.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: one for each setting, in runs/eval.")] = None,
    json_output: Json = False,
) -> None:
    """Draw a model's answers to the problems of a task or a file, and score them.

    Of a file without right answers it measures how likely the model finds the responses (perplexity).
    """
    terminal = Terminal(json_output=json_output)
    quiet_libraries(terminal)
    from posttrain.recipe.evaluation import evaluation_recipe
    from posttrain.tasks import tasks

    # Demonstrations of the shipped recipes come from the other part of a task's problems.
    part = ["part=test"] if task is not None and "part" in tasks.defaults(task) else []
    recipe = evaluation_recipe(
        model,
        task=task,
        options=[*part, *(option or [])],
        path=str(data) if data else None,
        count=count,
        difficulty=difficulty,
        seed=seed,
        out=str(out) if out else None,
        dtype=dtype,
        n=n,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        template=template,
    )
    if out is None:
        from posttrain.run import in_its_own_folder

        recipe = in_its_own_folder(recipe, terminal)
    _execute(recipe, terminal)


@app.command()
def chat(
    model: ModelName,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 512,
    dtype: Dtype = "float32",
    system: Annotated[str | None, typer.Option(help="The system's turn.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    json_output: Json = False,
) -> None:
    """Talk with a model; questions may also be piped in, one a line."""
    terminal = Terminal(json_output=json_output)
    quiet_libraries(terminal)
    from posttrain.chat import Conversation, converse
    from posttrain.generation import Sampling
    from posttrain.policy import ModelOptions, Policy
    from posttrain.training.ranks import Ranks

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    with terminal.waiting(f"loading {model}"):
        policy = Policy.load(model, ModelOptions(dtype=dtype), Ranks().device)
    converse(Conversation(policy, sampling, system), terminal)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    json_output: Json = False,
) -> None:
    """Write the report page of a run again, finished or not, and print where it lies."""
    from posttrain.reporting import write_report

    path = write_report(run_folder)
    Terminal(json_output=json_output).event("report", str(path), report=str(path))


@app.command()
def recipes(json_output: Json = False) -> None:
    """List the shipped recipes."""
    terminal = Terminal(json_output=json_output)
    rows: list[dict[str, object]] = []
    for name in shipped_recipes():
        recipe = read_recipe(name)
        kinds = {stage: fields.kind for stage, fields in recipe.stages.items()}
        row = {"name": name, "paper": recipe.paper, "description": recipe.description}
        rows.append(row | {"stages": _counted(kinds.values()) if terminal.interactive else kinds})
    terminal.table("", ["name", "paper", "description", "stages"], rows, right=["paper"])


@app.command()
def methods(
    claims_folder: Annotated[Path, typer.Option("--claims", help="Folder of the claim files.")] = Path("claims"),
    json_output: Json = False,
) -> None:
    """List the papers: what each is made of, its recipe, and how its claim fared."""
    terminal, shipped = Terminal(json_output=json_output), shipped_recipes()
    rows = []
    for paper in catalogue.papers():
        status = catalogue.status(paper, shipped, claims_folder)
        row = {"number": paper.number, "title": paper.title, "arxiv": paper.arxiv, "family": paper.family}
        rows.append(row | {"pieces": list(paper.pieces), "recipe": status.recipe, "claim": status.claim})
    columns = ["number", "title", "arxiv", "family", "pieces", "recipe", "claim"]
    if terminal.console.width < 140:
        columns.remove("pieces")
    terminal.table("", columns, rows, right=["number"])


app.command()(cli_verifiers.verifiers)
cli_comparison.register(app)


# --- what commands share ----------------------------------------------------------------------------------------------


def _execute(recipe: Recipe, terminal: Terminal) -> None:
    """Run a recipe and print what its evaluations came to."""
    quiet_libraries(terminal)
    from posttrain.reporting.summary import summary
    from posttrain.run import run as run_recipe
    from posttrain.training.loop import Interrupted
    from posttrain.training.ranks import Ranks

    terminal = terminal if Ranks().is_main else Terminal(quiet=True)
    try:
        outcome = run_recipe(recipe, terminal)
    except (Interrupted, KeyboardInterrupt) as error:
        saved = "saved" if isinstance(error, Interrupted) else "stopped at once"
        terminal.event("interrupted", f"{saved}; run the same command again to go on", saved=saved, out=recipe.folder)
        raise typer.Exit(130) from None
    _show_results(summary(outcome.folder, recipe.stages), terminal)
    page = outcome.folder / "report.html"
    terminal.event("finished", f"report: {page}", out=str(outcome.folder), report=str(page))


def _counted(kinds: Iterable[str]) -> str:
    """`2 evaluate, 1 train`: kinds of stages, in the order in which they first come."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())


def _show_results(lines: list["Line"], terminal: Terminal) -> None:
    if not terminal.interactive:
        for line in lines:
            terminal.line({"event": "result", **line.to_json()})
        return
    if not lines:
        return
    cells = [line.cells() for line in lines]
    columns = ["stage", "model", "data", "accuracy", "change", "perplexity", "tokens", "time"]
    columns = [column for column in columns if any(column in row for row in cells)]
    terminal.console.print()
    terminal.table("", columns, cells, right=["perplexity", "tokens", "time"])
    for line in lines:
        if line.comparison is not None:
            terminal.console.print(Text(line.comparison.sentence))
            for caveat in line.comparison.caveats:
                terminal.console.print(Text.assemble(("note ", "yellow"), caveat))


def main(arguments: list[str] | None = None) -> None:
    """`posttrain`: exit code 0 done, 1 failed, 2 bad input, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app([argument for argument in given if argument != "--debug"], prog_name="posttrain")
    except Exception as error:
        if "--debug" in given:
            raise
        if not _is_told_by_another(error):
            Console(stderr=True, highlight=False).print(Text(f"error: {_message(error)}", "red"), soft_wrap=True)
        sys.exit(2 if isinstance(error, UserError) or _is_full_disk(error) else 1)


def _is_told_by_another(error: Exception) -> bool:
    """Of several processes (torchrun sets RANK) all fail for what the user has to mend; the first one says so."""
    return isinstance(error, UserError) and os.environ.get("RANK", "0") != "0"


def _message(error: Exception) -> str:
    """One message that says what and how to mend it. Errors that explain themselves are ours, or known."""
    if type(error).__module__.startswith("posttrain."):
        return str(error)
    if _is_full_disk(error):
        return f"the disk is full ({error}): free some space, then run the same command again to go on"
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return f"out of memory: lower micro_batch_tokens or max_length (training), slots (answers). {said}"
    return f"{said}\n(run with --debug for the traceback)"


def _is_full_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


if __name__ == "__main__":
    main()
