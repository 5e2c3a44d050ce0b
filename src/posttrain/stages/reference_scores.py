"""Cached references: a frozen model's log-probs of a fixed data set, computed once and read at every step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from posttrain.data import Sequence
from posttrain.data.scores import REFERENCE_LOGPROBS
from posttrain.data.token_store import EncodedDataset
from posttrain.errors import UserError
from posttrain.objectives import Objective
from posttrain.policy import Policy
from posttrain.policy.scoring import scored
from posttrain.recipe import Train
from posttrain.stages.context import Context
from posttrain.stages.fingerprints import digest

WINDOW = 512
"""Sequences that are sorted by length and scored together."""


class WithReference:
    """A data set whose sequences carry the column `reference_logprobs`, read from a memory-mapped file."""

    def __init__(self, data: EncodedDataset, path: Path) -> None:
        self.data = data
        self.values = np.load(path, mmap_mode="r")
        self.starts = np.concatenate([[0], np.cumsum(data.targets)])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sequence:
        sequence = self.data[index]
        column = np.zeros(len(sequence), np.float32)
        column[sequence.target] = self.values[self.starts[index] : self.starts[index + 1]]
        return replace(sequence, columns={**sequence.columns, REFERENCE_LOGPROBS.name: column})


def check_cacheable(objective: Objective) -> None:
    """Raises `UserError` when the objective asks the reference for more than the log-probs of the data's tokens."""
    for term in objective.terms:
        more = [need.name for need in term.needs if need.reference and need.name != REFERENCE_LOGPROBS.name]
        if term.prepare is not None:
            raise UserError(
                f"cache_reference: objective '{term.name}' prepares each step's sequences anew, and what is kept are "
                "scores of the data's own; leave cache_reference out"
            )
        if more:
            raise UserError(
                f"cache_reference: objective '{term.name}' asks the reference for {', '.join(more)} as well"
            )


def with_reference(context: Context, stage: Train, reference: Policy, dataset: EncodedDataset) -> WithReference:
    """The data with the reference's log-probs, from the cache beside the run folders where they were made before."""
    name, budget = stage.reference or stage.init_from, context.micro_batch_tokens(stage)
    path = context.ranks.on_main(lambda: stored_logprobs(context, name, lambda: reference, dataset, budget))
    return WithReference(dataset, path)


def stored_logprobs(
    context: Context, model: str, load: Callable[[], Policy], dataset: EncodedDataset, budget: int
) -> Path:
    """The file with the log-probs `[N]` of all target tokens under the model that the recipe calls `model`.

    Written, with the policy that `load` gives, where no earlier run has left one for the same weights and tokens.
    """
    key = digest([dataset.folder.name, context.model_fingerprint(model)])
    path = Path(context.folder).parent / ".cache" / f"reference-{key}.npy"
    if path.is_file():
        return path
    values = _scored(context, load(), model, dataset, budget)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.save(file, values)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
    return path


def _scored(
    context: Context, policy: Policy, name: str, dataset: EncodedDataset, budget: int
) -> npt.NDArray[np.float32]:
    starts = np.concatenate([[0], np.cumsum(dataset.targets)])
    values = np.zeros(int(starts[-1]), np.float32)
    policy.model.eval()
    with context.terminal.bar(f"scoring with {name}", len(dataset), "rows") as bar:
        for first in range(0, len(dataset), WINDOW):
            rows = range(first, min(first + WINDOW, len(dataset)))
            sequences = [dataset[row] for row in rows]
            for item, scores in scored(policy, sequences, (), budget):
                values[starts[first + item] : starts[first + item + 1]] = scores.logprobs.float().cpu().numpy()
            bar.advance(len(rows))
    return values
