"""Train stages whose data a filter has left empty: skipped, said loudly, with the weights as they were."""

from itertools import islice
from typing import Any

from rich.text import Text

from posttrain.recipe import Train
from posttrain.stages.context import Context
from posttrain.stages.models import load_policy


def emptied_by(context: Context, stage: Train) -> list[str]:
    """The curate stages that have left nothing to train on, as they may (`when_empty: skip`); mostly none."""
    data = context.data(stage.data)
    writers = sorted(context.pending(data))
    may = [name for name in writers if getattr(context.recipe.stages[name], "when_empty", "stop") == "skip"]
    return may if may and not list(islice(context.samples(data), 1)) else []


def leave_untrained(context: Context, name: str, stage: Train, emptied: list[str]) -> dict[str, Any]:
    """Save the weights that the stage starts from as its own, for the stages behind it. Returns the stage's summary."""
    said = f"not trained: {', '.join(emptied)} kept no sample, the weights are those of '{stage.init_from}'"
    context.terminal.event("untrained", Text(f"! {name}: {said}", "bold yellow"), stage=name, reason=said)
    context.ranks.on_main(lambda: load_policy(context, stage.init_from).save(context.folder / "models" / name))
    return {"steps": 0, "note": said}
