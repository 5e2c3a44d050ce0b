"""The evaluate stage: answers, scores, intervals."""

import json
import time
from typing import Any

from posttrain.data import Sample
from posttrain.data.rendering import Rendering, render
from posttrain.data.turns import Refusal
from posttrain.errors import UserError
from posttrain.evaluation import Answer
from posttrain.policy import Policy
from posttrain.recipe import Evaluate
from posttrain.stages.asking import ask, counting, plan_questions, questions
from posttrain.stages.context import Context
from posttrain.stages.plan import Plan
from posttrain.stages.scoring import mean_logprob
from posttrain.stages.train import load_policy

LIKELIHOOD_TOKENS = 8192
"""Tokens of a micro-batch when demonstrations are scored."""


def plan_evaluate(context: Context, name: str, stage: Evaluate) -> Plan:
    """Check model and data; render every prompt and see that an answer fits behind it."""
    return Plan(plan_questions(context, stage))


def run_evaluate(context: Context, name: str, stage: Evaluate) -> dict[str, Any]:
    """Draw and score answers; writes `results/<stage>.json` and `samples/<stage>.jsonl`."""
    return context.ranks.on_main(lambda: _evaluate(context, name, stage))


def _evaluate(context: Context, name: str, stage: Evaluate) -> dict[str, Any]:
    policy = load_policy(context, stage.model)
    samples = questions(context, stage.data)
    rows: list[dict[str, Any]] = []

    def record(answer: Answer) -> None:
        rows.append(answer.to_json())

    started = time.perf_counter()
    expected = len(samples) * stage.n * stage.max_new_tokens
    with context.terminal.bar(f"evaluating {name}", expected, "tokens at most") as bar:
        result = ask(
            context,
            policy,
            samples,
            stage,
            stage.template,
            name,
            template_options=stage.template_options,
            seed=context.recipe.seed,
            record=record,
            progress=counting(context, bar),
        )
    seconds = time.perf_counter() - started
    metrics = {**result.metrics, **_log_likelihood(policy, samples, stage)}
    context.journal.restart_stage()
    context.journal.answers(name, rows)
    tokens = sum(int(row["tokens"]) for row in rows)
    content = {
        "stage": name,
        "model": stage.model,
        "data": stage.data,
        "metrics": metrics,
        "problems": {problem.sample_id: problem.right / problem.draws for problem in result.problems},
        "seconds": seconds,
        "tokens": tokens,
        "result": result.to_json(),
    }
    write_atomically(context, f"results/{name}.json", json.dumps(content, ensure_ascii=False))
    kept = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return {**kept, "seconds": round(seconds, 3), "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)}


def _log_likelihood(policy: Policy, samples: list[Sample], stage: Evaluate) -> dict[str, float]:
    """Mean log-probability of the demonstrations' tokens (nats), where the data have demonstrations."""
    shown = [sample for sample in samples if sample.response]
    if not shown:
        return {}
    rendering = Rendering(policy.context_length, template=stage.template, template_options=stage.template_options)
    rendered = [render(sample, policy.tokenizer, rendering) for sample in shown]
    sequences = [sequence for sequence in rendered if not isinstance(sequence, Refusal)]
    return {"log_likelihood": mean_logprob(policy, sequences, LIKELIHOOD_TOKENS)} if sequences else {}


def write_atomically(context: Context, name: str, text: str) -> None:
    """Write a file of the run folder, whole or not at all. Raises `UserError` when it cannot be written."""
    path = context.folder / name
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
