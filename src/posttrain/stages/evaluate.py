"""The evaluate stage: answers, scores, intervals."""

import json
import time
from typing import Any

from posttrain.data import Sample
from posttrain.data.rendering import Rendering, render_batch
from posttrain.data.scores import ENTROPY, REVERSE_KL
from posttrain.data.turns import Refusal
from posttrain.evaluation import Answer
from posttrain.policy import Policy, Reference
from posttrain.recipe import Evaluate
from posttrain.stages.asking import ask, counting, plan_questions, questions
from posttrain.stages.context import Context
from posttrain.stages.encoded import prompts_of
from posttrain.stages.files import write_atomically
from posttrain.stages.models import load_policy
from posttrain.stages.plan import Plan
from posttrain.stages.scoring import behind_prompt, mean_scores


def plan_evaluate(context: Context, name: str, stage: Evaluate) -> Plan:
    """Check models and data; render every prompt and see that an answer fits behind it."""
    if stage.reference is not None:
        context.origin(stage.reference)
    return Plan(plan_questions(context, stage))


def run_evaluate(context: Context, name: str, stage: Evaluate) -> dict[str, Any]:
    """Draw and score answers; writes `results/<stage>.json` and `samples/<stage>.jsonl`."""
    return context.ranks.on_main(lambda: _evaluate(context, name, stage))


def _evaluate(context: Context, name: str, stage: Evaluate) -> dict[str, Any]:
    policy = load_policy(context, stage.model)
    samples = questions(context, stage.data)
    answers: list[Answer] = []

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
            record=answers.append,
            progress=counting(context, bar),
        )
    seconds = time.perf_counter() - started
    metrics = {**result.metrics, **_log_likelihood(context, policy, samples, stage)}
    if stage.reference is not None:
        metrics |= _drift(context, policy, samples, answers, stage)
    context.journal.restart_stage()
    context.journal.answers(name, [answer.to_json() for answer in answers])
    tokens = sum(answer.tokens for answer in answers)
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


def _log_likelihood(context: Context, policy: Policy, samples: list[Sample], stage: Evaluate) -> dict[str, float]:
    """Mean log-probability of the demonstrations' tokens (nats), where the data have demonstrations."""
    shown = [sample for sample in samples if sample.response]
    if not shown:
        return {}
    rendering = Rendering(policy.context_length, template=stage.template, template_options=stage.template_options)
    rendered = render_batch(shown, policy.tokenizer, rendering)
    sequences = [item.sequence for item in rendered if not isinstance(item, Refusal)]
    if not sequences:
        return {}
    return {"log_likelihood": mean_scores(policy, sequences, (), context.evaluation_tokens)["logprobs"]}


def _drift(
    context: Context, policy: Policy, samples: list[Sample], answers: list[Answer], stage: Evaluate
) -> dict[str, float]:
    """`kl`: KL(model ‖ reference) a token, over the whole vocabulary, along the model's own answers (nats); `entropy`:
    that of the model there."""
    assert stage.reference is not None
    limit, tokenizer = policy.context_length, policy.tokenizer
    prompts = prompts_of(samples, tokenizer, stage.template, stage.max_new_tokens, limit, stage.template_options)
    sequences = [
        behind_prompt(prompts[answer.sample_id], answer.token_ids, answer.sample_id)
        for answer in answers
        if answer.token_ids
    ]
    policy.reference = Reference.of(load_policy(context, stage.reference))
    found = mean_scores(policy, sequences, (REVERSE_KL, ENTROPY), context.evaluation_tokens)
    return {"kl": found["reverse_kl"], "entropy": found["entropy"]}
