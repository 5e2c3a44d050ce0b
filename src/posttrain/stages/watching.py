"""Evaluation while a model trains: held-out loss, and generated answers scored like everywhere else."""

from typing import Any

import torch

from posttrain.data import Sequence
from posttrain.data.batch import collate, micro_batches
from posttrain.data.rendering import render_batch
from posttrain.data.turns import Refusal
from posttrain.policy import Policy
from posttrain.recipe import Train
from posttrain.stages.asking import ask, questions
from posttrain.stages.context import Context
from posttrain.stages.encoded import rendering_of

SHOWN = ("accuracy", "accuracy_low", "accuracy_high", "mean_length", "truncated", "format_validity", "errors")


class Watcher:
    """Called with the step; gives the metrics of that moment and writes every answer to `samples/`."""

    def __init__(self, context: Context, name: str, stage: Train, policy: Policy) -> None:
        assert stage.watch is not None
        self.context, self.name, self.stage, self.watch, self.policy = context, name, stage, stage.watch, policy
        self.samples = questions(context, stage.watch.data, stage.watch.count)
        rendered = render_batch(self.samples, policy.tokenizer, rendering_of(stage, policy.model))
        self.held_out = [item.sequence for item in rendered if not isinstance(item, Refusal)]

    def __call__(self, step: int) -> dict[str, float]:
        """Metrics after `step` steps, the same on every rank. The first rank does the work."""
        metrics = self._measure(step) if self.context.ranks.is_main else {}
        return dict(self.context.ranks.gather(metrics)[0])

    def _measure(self, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.held_out:
            metrics["held_out_loss"] = -mean_logprob(self.policy, self.held_out, self.stage.micro_batch_tokens)
        if self.watch.generate:
            metrics |= self._answers(step)
        return metrics

    def _answers(self, step: int) -> dict[str, float]:
        rows: list[dict[str, Any]] = []
        result = ask(
            self.context,
            self.policy,
            self.samples,
            self.watch,
            self.stage.template,
            self.name,
            step=step,
            seed=self.context.recipe.seed,
            record=lambda answer: rows.append(answer.to_json()),
        )
        self.context.journal.answers(self.name, rows)
        drawn = [key for key in result.metrics if "@" in key]
        return {key: result.metrics[key] for key in (*SHOWN, *drawn) if key in result.metrics}


@torch.no_grad()
def mean_logprob(policy: Policy, sequences: list[Sequence], token_budget: int) -> float:
    """Mean log-probability of the target tokens of some sequences (nats per token)."""
    total, count = 0.0, 0
    for part in micro_batches(sequences, token_budget, layout=policy.layout):
        batch = collate([sequences[row] for row in part], layout=policy.layout).to(policy.device)
        logprobs = policy.scores(batch).logprobs
        total += float(logprobs.double().sum())
        count += len(logprobs)
    return total / max(1, count)
