"""Evaluation while a model trains: held-out loss, and generated answers scored like everywhere else."""

from typing import Any

from posttrain.data.rendering import Rendering, render_batch
from posttrain.data.turns import Refusal
from posttrain.errors import UserError, nearest
from posttrain.evaluation import Answer, summarise
from posttrain.evaluation.metrics import draw_counts
from posttrain.policy import Policy
from posttrain.recipe import Train
from posttrain.stages.answers.asking import can_be_scored, draw, questions, sampling_of
from posttrain.stages.context import Context
from posttrain.stages.encoded import prompts_of, rendering_of
from posttrain.stages.scoring import mean_scores
from posttrain.stages.shape import Shape, check_engine
from posttrain.training.loop import EarlyStopping

HELD_OUT = "held_out_loss"
SMALLER_IS_BETTER = (HELD_OUT, "truncated", "errors")
SHOWN = ("accuracy", "accuracy_low", "accuracy_high", "mean_length", "truncated", "format_validity", "errors")


def check_watch(context: Context, stage: Train, tokenizer: Any, shape: Shape) -> tuple[str, ...]:
    """Refuse before the start what an evaluation would stumble over: questions, their length, the metric's name.

    Returns what the user should know of it.
    """
    watch, rule = stage.watch, stage.early_stopping
    if watch is None:
        return ()
    notes: tuple[str, ...] = ()
    draws = watch.generate
    if not context.pending(context.data(watch.data)):
        samples = questions(context, watch.data, watch.count)
        draws = draws and can_be_scored(context, watch.data, samples)
        if draws:
            prompts_of(samples, tokenizer, _rendering(stage, shape.context), watch.max_new_tokens)
        elif watch.generate:
            notes = (f"watch: data '{watch.data}' has no right answers (a column 'answer'): only the held-out loss",)
    if draws:
        check_engine(shape.model)
    known = (HELD_OUT, *(SHOWN if draws else ()))
    if rule is not None and rule.metric not in known and not (draws and _is_drawn(rule.metric, watch.n)):
        raise UserError(f"early_stopping.metric '{rule.metric}' is not measured here: {nearest(rule.metric, known)}")
    return notes


def _is_drawn(metric: str, n: int) -> bool:
    """Is this one of the metrics of k draws, with a k that `n` draws give?"""
    name, _, k = metric.partition("@")
    measured = {"pass": draw_counts(n), "majority": draw_counts(n), "average": [n]}
    return k.isdecimal() and int(k) in measured.get(name, [])


def stop_rule(stage: Train) -> EarlyStopping | None:
    """When the stage stops early, and which of its metric's sides is the better one where it does not say."""
    rule = stage.early_stopping
    if rule is None:
        return None
    larger = rule.metric not in SMALLER_IS_BETTER if rule.larger_is_better is None else rule.larger_is_better
    return EarlyStopping(rule.metric, rule.patience, larger)


def _rendering(stage: Train, limit: int) -> Rendering:
    return Rendering(limit, template=stage.template, template_options=stage.template_options)


class Watcher:
    """Called with the step; gives the metrics of that moment and writes every answer to `samples/`."""

    def __init__(self, context: Context, name: str, stage: Train, policy: Policy) -> None:
        assert stage.watch is not None
        self.context, self.name, self.stage, self.watch, self.policy = context, name, stage, stage.watch, policy
        self.samples = questions(context, stage.watch.data, stage.watch.count)
        self.draws = stage.watch.generate and can_be_scored(context, stage.watch.data, self.samples)
        rendered = render_batch(self.samples, policy.tokenizer, rendering_of(stage, policy.model))
        self.held_out = [item.sequence for item in rendered if not isinstance(item, Refusal)]

    def __call__(self, step: int) -> dict[str, float]:
        """Metrics after `step` steps, the same on every rank.

        All ranks run the same passes for the held-out loss (which sharded weights need); the first one draws answers.
        """
        with self.context.terminal.waiting(f"evaluating after step {step}"):
            return self._measured(step)

    def _measured(self, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.held_out:
            found = mean_scores(self.policy, self.held_out, (), self.context.micro_batch_tokens(self.stage))
            metrics[HELD_OUT] = -found["logprobs"]
        if self.draws:
            metrics |= self.context.ranks.on_main(lambda: self._answers(step))
        return dict(self.context.ranks.gather(metrics)[0])

    def _answers(self, step: int) -> dict[str, float]:
        answers: list[Answer] = []
        try:
            draw(
                self.context,
                self.policy,
                self.samples,
                self.watch,
                _rendering(self.stage, self.policy.context_length),
                self.context.verify,
                answers.append,
                step=step,
            )
        finally:
            self.context.journal.answers(self.name, [answer.to_json() for answer in answers])
        sampling = sampling_of(self.watch, self.context.recipe.seed)
        result = summarise(answers, n=self.watch.n, sampling=sampling, name=self.name)
        drawn = [key for key in result.metrics if "@" in key]
        return {key: result.metrics[key] for key in (*SHOWN, *drawn) if key in result.metrics}
