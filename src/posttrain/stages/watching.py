"""Evaluation while a model trains: held-out loss, and generated answers scored like everywhere else."""

from itertools import islice
from typing import Any

from posttrain.data import Sample
from posttrain.data.rendering import render_batch
from posttrain.data.turns import Refusal
from posttrain.errors import UserError, nearest
from posttrain.policy import Policy
from posttrain.recipe import Train, Watch
from posttrain.stages.asking import ask, questions
from posttrain.stages.context import Context
from posttrain.stages.encoded import prompts_of, rendering_of
from posttrain.stages.scoring import mean_scores

HELD_OUT = "held_out_loss"
SHOWN = ("accuracy", "accuracy_low", "accuracy_high", "mean_length", "truncated", "format_validity", "errors")


def watched(context: Context, watch: Watch) -> list[Sample]:
    """The samples of an evaluation; where no answers are drawn, they need none to be scored against."""
    if watch.generate:
        return questions(context, watch.data, watch.count)
    return list(islice(context.samples(context.data(watch.data)), watch.count))


def check_watch(context: Context, stage: Train, tokenizer: Any, limit: int) -> None:
    """Refuse before the start what an evaluation would stumble over: questions, their length, the metric's name."""
    watch, rule = stage.watch, stage.early_stopping
    if watch is None:
        return
    if not context.pending(context.data(watch.data)):
        samples = watched(context, watch)
        if watch.generate:
            prompts_of(samples, tokenizer, stage.template, watch.max_new_tokens, limit, stage.template_options)
    known = (HELD_OUT, *(SHOWN if watch.generate else ()))
    if rule is not None and rule.metric not in known and not (watch.generate and "@" in rule.metric):
        raise UserError(f"early_stopping.metric '{rule.metric}' is not measured here: {nearest(rule.metric, known)}")


class Watcher:
    """Called with the step; gives the metrics of that moment and writes every answer to `samples/`."""

    def __init__(self, context: Context, name: str, stage: Train, policy: Policy) -> None:
        assert stage.watch is not None
        self.context, self.name, self.stage, self.watch, self.policy = context, name, stage, stage.watch, policy
        self.samples = watched(context, stage.watch)
        rendered = render_batch(self.samples, policy.tokenizer, rendering_of(stage, policy.model))
        self.held_out = [item.sequence for item in rendered if not isinstance(item, Refusal)]

    def __call__(self, step: int) -> dict[str, float]:
        """Metrics after `step` steps, the same on every rank.

        All ranks run the same passes for the held-out loss (which sharded weights need); the first one draws answers.
        """
        metrics: dict[str, float] = {}
        if self.held_out:
            found = mean_scores(self.policy, self.held_out, (), self.context.micro_batch_tokens(self.stage))
            metrics[HELD_OUT] = -found["logprobs"]
        if self.watch.generate:
            metrics |= self.context.ranks.on_main(lambda: self._answers(step))
        return dict(self.context.ranks.gather(metrics)[0])

    def _answers(self, step: int) -> dict[str, float]:
        rows: list[dict[str, Any]] = []
        result = ask(
            self.context,
            self.policy,
            self.samples,
            self.watch,
            self.stage.template,
            self.name,
            template_options=self.stage.template_options,
            step=step,
            seed=self.context.recipe.seed,
            record=lambda answer: rows.append(answer.to_json()),
        )
        self.context.journal.answers(self.name, rows)
        drawn = [key for key in result.metrics if "@" in key]
        return {key: result.metrics[key] for key in (*SHOWN, *drawn) if key in result.metrics}
