"""What arms are compared by: names, units, and which way is better."""

import math

from posttrain.comparison.result import Measure

SHOWN = ("accuracy", "log_likelihood", "kl", "entropy", "mean_length")
"""Of an evaluation, in this order; a pass@k of more than one draw comes behind accuracy."""

CONTINUAL = ("forgetting", "average_accuracy", "learned_accuracy", "general_change")
"""Of a continual stage, in this order."""

COSTS = ("seconds", "trained_tokens", "input_tokens", "loss")
"""Of a train stage, in this order."""

IMITATED = "imitated"
"""How much of what all tokens weigh is on tokens that others wrote; told where arms differ in it."""

_LABELS = {
    "imitated": "share of imitation",
    "accuracy": "accuracy",
    "average_accuracy": "accuracy on all tasks at the end",
    "learned_accuracy": "accuracy on each task behind its own stage",
    "forgetting": "change since a task's own stage (below 0: forgotten)",
    "forgetting_from_best": "change since a task's best (below 0: forgotten)",
    "log_likelihood": "log-likelihood of demonstrations a token",
    "kl": "KL to the start a token",
    "entropy": "entropy a token",
    "mean_length": "length of answers",
    "mean_length_right": "length of right answers",
    "mean_length_wrong": "length of wrong answers",
    "rejected": "share of rejections",
    "seconds": "time",
    "trained_tokens": "trained tokens",
    "input_tokens": "input tokens",
    "loss": "loss",
    "saturation": "step of reward saturation",
    "gain": "gain of held-out accuracy",
    "gain_before_saturation": "gain of held-out accuracy up to reward saturation",
    "gain_after_saturation": "gain of held-out accuracy after reward saturation",
    "pair_precision": "pairs that are the right way round",
    "followed": "executions that carry out their plans",
    "decoded_tokens": "tokens drawn for a problem",
    "token_share": "tokens, as a share of those of whole answers",
    "faithful": "answers that follow from their steps",
    "faithful_right": "right answers that follow from their steps",
}
_UNITS = {
    "imitated": "points",
    "accuracy": "points",
    "average_accuracy": "points",
    "learned_accuracy": "points",
    "forgetting": "points",
    "forgetting_from_best": "points",
    "general_change": "points",
    "format_validity": "points",
    "truncated": "points",
    "followed": "points",
    "adherence": "points",
    "faithful": "points",
    "faithful_right": "points",
    "rejected": "points",
    "recall": "points",
    "precision": "points",
    "pair_precision": "points",
    "gap": "points",
    "saturation": "steps",
    "log_likelihood": "nats",
    "kl": "nats",
    "entropy": "nats",
    "decoded_tokens": "tokens",
    "mean_length": "tokens",
    "mean_length_right": "tokens",
    "mean_length_wrong": "tokens",
    "trained_tokens": "tokens",
    "input_tokens": "tokens",
    "seconds": "s",
}
_LARGER_IS_BETTER = {
    "accuracy": True,
    "average_accuracy": True,
    "learned_accuracy": True,
    "forgetting": True,  # a change: less than 0 is forgotten
    "forgetting_from_best": True,
    "general_change": True,
    "log_likelihood": True,
    "perplexity": False,
    "reward_accuracy": True,
    "format_validity": True,
    "truncated": False,
    "followed": True,
    "adherence": True,
    "decoded_tokens": False,
    "token_share": False,
    "faithful": True,
    "faithful_right": True,
    "recall": True,
    "precision": True,
    "pair_precision": True,
    "gap": False,
    "kl": None,  # far from the start is what training is for; how far is worth knowing, not a fault
    "seconds": False,
}
_DIFFERENCES = ("forgetting", "forgetting_from_best", "general_change", "gap")
"""Of shares: these may be below 0."""


def measure(stage: str, metric: str) -> Measure:
    """The measure `stage.metric`; `log.NAME` of a train stage is a mean over the last tenth of its steps."""
    share = "@" in metric or metric.startswith("accuracy_")  # of answers of one sort, as a verifier's part says it
    name = metric.removeprefix("log.")
    label = f"{_LABELS.get(name, name.replace('_', ' '))}, {stage}"
    name = "gap" if name.startswith("gap/") else name
    return Measure(
        name=f"{stage}.{metric}",
        stage=stage,
        metric=metric,
        label=label,
        unit="points" if share else _UNITS.get(name, ""),
        larger_is_better=True if share else _LARGER_IS_BETTER.get(name),
        has_problems=metric in ("accuracy", "forgetting"),
    )


def limits(each: Measure) -> tuple[float, float]:
    """The least and the greatest that a measure can be."""
    if each.unit == "points":
        return (-1.0 if each.metric.partition("/")[0] in _DIFFERENCES else 0.0), 1.0
    counted = each.unit in ("s", "tokens", "steps") or each.metric in ("kl", "entropy")
    return (0.0 if counted else -math.inf), math.inf
