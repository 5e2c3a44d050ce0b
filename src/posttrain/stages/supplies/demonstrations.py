"""A data set as what a train stage learns from."""

import json
from operator import itemgetter
from typing import Any

from posttrain.data import Sequence
from posttrain.data.rendering import Rendering
from posttrain.data.token_store import EncodedDataset
from posttrain.objectives import Objective
from posttrain.policy import Policy
from posttrain.recipe import Train
from posttrain.sources import Demonstrations, Source
from posttrain.sources.demonstrations import Dataset
from posttrain.stages.context import Context
from posttrain.stages.encoded import encoded
from posttrain.stages.files import write_atomically
from posttrain.stages.reference_scores import with_reference
from posttrain.stages.supplies.supply import Numbers


class DemonstrationSupply:
    """A data set as tokens, refusals counted, in an order that is a function of the seed."""

    def __init__(
        self, context: Context, name: str, stage: Train, objective: Objective, tokenizer: Any, rendering: Rendering
    ) -> None:
        self.context, self.name, self.stage = context, name, stage
        self.dataset: EncodedDataset = encoded(context, stage.data, tokenizer, rendering, pairs=objective.needs_pairs)
        if not stage.transforms:  # which may add what the objective reads
            objective.check(self.dataset.kinds())
        self._rows: Dataset = self.dataset
        order = self._order()
        self.steps, self.steps_per_epoch, self._total = order.steps, order.items / stage.batch_size, order.total

    def numbers(self) -> tuple[Numbers, tuple[str, ...]]:
        """Rows, refusals, tokens; see `Supply.numbers`."""
        report, samples, size = self.dataset.report, self.dataset.report.kept, self.stage.batch_size
        found: Numbers = {
            "rows": report.rows,
            "samples": samples,
            "duplicates": report.duplicates,
            "refused": sum(report.refused.values()),
            "truncated": report.truncated,
            "steps": self.stage.steps or self.steps,
            "epochs": round(self._total / samples, 3),
            "samples_per_step": size,
            "tokens_per_step": round(report.tokens / samples * size),
            "trained_tokens_per_step": round(report.trained_tokens / samples * size),
            "trained_share": round(report.trained_tokens / report.tokens, 4),
            "trained_tokens": round(self._total * report.trained_tokens / samples),
        }
        refused = tuple(f"{count} rows refused: {reason}" for reason, count in report.refused.items())
        return found, (*refused, *report.notes)

    def cache_reference(self, reference: Policy) -> None:
        """See `Supply.cache_reference`."""
        self._rows = with_reference(self.context, self.stage, reference, self.dataset)

    def source(self, policy: Policy) -> Source:
        """See `Supply.source`."""
        return self._order()

    def probe(self, count: int) -> list[Sequence]:
        """The first rows."""
        return [self.dataset[index] for index in range(min(count, len(self.dataset)))]

    def summary(self) -> dict[str, Any]:
        """How many samples; the refused rows, with their numbers and reasons, go to `refused/<stage>.jsonl`."""
        rows = [
            {"row": example.row, "reason": reason, "detail": example.detail, "sample_id": example.id}
            for reason, examples in self.dataset.report.examples.items()
            for example in examples
        ]
        if rows and self.context.ranks.is_main:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(rows, key=itemgetter("row")))
            write_atomically(self.context, f"refused/{self.name}.jsonl", text)
        return {"samples": self.dataset.report.kept}

    def _order(self) -> Demonstrations:
        stage, kept = self.stage, self.dataset.report.kept
        return Demonstrations(
            self._rows,
            stage.batch_size,
            self.context.recipe.seed,
            epochs=stage.epochs if stage.steps is None else stage.steps * stage.batch_size / kept,
            pairs=self.dataset.pairs,
            rank=self.context.ranks.rank,
            ranks=self.context.ranks.count,
        )
