"""What `test_ranks.py` starts on two ranks: `torchrun two_ranks.py FOLDER` runs the cases of FOLDER/cases.json.

All in one call, because most of a process's time goes into its imports.
"""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from running import run_quietly
from torch import nn

from posttrain.errors import UserError
from posttrain.recipe import check_recipe
from posttrain.training import ranks as ranks_module
from posttrain.training.journal import Journal
from posttrain.training.loop import Interrupted
from posttrain.training.ranks import Ranks


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = Ranks()
    outcomes = {"talk": talk(ranks)}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        outcomes[name] = outcome(case, ranks)
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(outcomes))


def outcome(case: Mapping[str, Any], ranks: Ranks) -> list[str]:
    """How each call of a case ended; `interrupts` says at which step each is cut off, or None."""
    recipe = check_recipe(case["recipe"])
    endings = []
    for interrupt_at in case["interrupts"]:
        unpatched = Journal.metrics
        if interrupt_at and ranks.rank == 1:  # one rank is asked to stop; all do
            Journal.metrics = interrupting(interrupt_at)  # type: ignore[method-assign]
        try:
            run_quietly(recipe)
            endings.append("finished")
        except (UserError, Interrupted) as error:
            endings.append(f"{type(error).__name__}: {error}")
        Journal.metrics = unpatched  # type: ignore[method-assign]
    return endings


def interrupting(step: int) -> Any:
    def metrics(journal: Journal, row: Mapping[str, Any]) -> None:
        if row["step"] == step:
            signal.raise_signal(signal.SIGINT)

    return metrics


def talk(ranks: Ranks) -> list[Any]:
    """What ranks say to one another, and how gradients add up."""
    said: list[Any] = [ranks.gather(ranks.rank * 10), ranks.on_main(lambda: f"from {ranks.rank}")]
    try:
        ranks.on_main(lambda: fail(ranks.rank))
    except UserError as error:
        said.append(str(error))
    ranks_module.MESSAGE_ELEMENTS = 3  # several messages, some with several parameters
    both, one, none, half = (nn.Parameter(torch.zeros(n)) for n in (2, 1, 5, 4))
    both.grad = torch.tensor([1.0, 2.0 + ranks.rank])
    half = nn.Parameter(half.detach().bfloat16())
    half.grad = torch.full((4,), 0.5, dtype=torch.bfloat16)
    if ranks.rank == 1:
        one.grad = torch.tensor([7.0])
    ranks.add_gradients([both, one, none, half])
    return [*said, *(None if p.grad is None else [p.grad.tolist(), str(p.grad.dtype)] for p in (both, one, none, half))]


def fail(rank: int) -> None:
    raise UserError(f"rank {rank} cannot")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
