"""The evaluate stage: answers, scores, intervals; of data without right answers, how likely its responses are; of a
reward model, how often it prefers the better answer."""

import json
import time
from typing import Any

import numpy as np

from posttrain.data import Sample, Sequence
from posttrain.data.rendering import render_batch
from posttrain.data.scores import ENTROPY, REVERSE_KL
from posttrain.data.turns import Refusal
from posttrain.errors import UserError
from posttrain.evaluation import Answer, log_likelihood, reranked, summarise
from posttrain.evaluation.stopping import passed_over
from posttrain.policy import Policy, Reference, load_tokenizer
from posttrain.policy.scoring import scored
from posttrain.recipe import Evaluate
from posttrain.stages.answers.asking import ask, asked_as, can_be_scored, plan_questions, questions, sampling_of
from posttrain.stages.answers.judging import check_judge, is_judge, rewards_of
from posttrain.stages.answers.kept_answers import KeptAnswers
from posttrain.stages.answers.planning import ask_by_plans, plan_metrics, plan_plans
from posttrain.stages.context import Context
from posttrain.stages.encoded import prompts_of
from posttrain.stages.files import write_atomically
from posttrain.stages.models import load_policy
from posttrain.stages.plan import Plan
from posttrain.stages.preferred import plan_preferred, preferred
from posttrain.stages.scoring import behind_prompt, mean_scores
from posttrain.stages.shape import check_one_vocabulary

UNSCORED = "no right answers are given (a column 'answer'): the likelihood of the given responses is measured alone"


def plan_evaluate(context: Context, name: str, stage: Evaluate) -> Plan:
    """Check models and data; render every prompt and see that an answer fits behind it."""
    if is_judge(context, stage.model):
        pairs = None if context.pending(context.data(stage.data)) else questions(context, stage.data)
        return plan_preferred(context, stage, pairs)
    if stage.reference is not None:
        check_one_vocabulary(context, stage.model, stage.reference)
    if stage.rerank is not None:
        check_one_vocabulary(context, stage.model, stage.rerank)
        check_judge(context, stage.rerank)
    if stage.passed_over is not None:
        _stop_token(load_tokenizer(context.origin(stage.model).path), stage.passed_over)
    samples = None if context.pending(context.data(stage.data)) else questions(context, stage.data)
    if stage.turns > 1:
        for sample in samples or []:
            context.interactive(sample)
    if samples is None or can_be_scored(context, stage.data, samples):
        check = plan_questions if stage.plans is None else plan_plans
        return Plan(*check(context, stage, samples))
    _check_responses(stage, samples)
    plan_questions(context, stage.model_copy(update={"max_new_tokens": 1}), samples)
    notes = [f"data '{stage.data}': {UNSCORED}"]
    given = [f"'{key}'" for key in ("reference", "passed_over", "rerank", "plans") if getattr(stage, key) is not None]
    notes += [f"{key} is measured along drawn answers: of these data it is not measured" for key in given]
    return Plan({"samples": len(samples)}, tuple(notes))


def _check_responses(stage: Evaluate, samples: list[Sample]) -> None:
    """Raises `UserError` for samples without right answers of which nothing (else) can be measured."""
    if stage.server is not None:
        raise UserError(f"data '{stage.data}' has no right answers (a column 'answer') to score the server's by")
    if not any(sample.response for sample in samples):
        raise UserError(
            f"data '{stage.data}': its samples have neither a right answer (a column 'answer') to score against nor a "
            "response to measure the likelihood of"
        )


def run_evaluate(context: Context, name: str, stage: Evaluate) -> dict[str, Any]:
    """Draw and score answers; writes `results/<stage>.json` and `samples/<stage>.jsonl`."""
    return context.ranks.on_main(lambda: _evaluate(context, name, stage))


def _evaluate(context: Context, name: str, stage: Evaluate) -> dict[str, Any]:
    samples = questions(context, stage.data)
    policy = load_policy(context, stage.model) if stage.server is None else None
    started = time.perf_counter()
    is_reward = policy is not None and policy.is_reward
    if not is_reward and can_be_scored(context, stage.data, samples):
        content = _answered(context, name, stage, samples, policy)
    else:
        if is_reward:
            found = preferred(context, stage, samples)
        else:
            _check_responses(stage, samples)
            assert policy is not None
            found = _likelihood(context, policy, samples, stage)
        content = {"metrics": {"samples": len(samples), **found}, "problems": {}, "result": None, "tokens": 0}
        content["seconds"] = time.perf_counter() - started
    content |= {"stage": name, "model": stage.model, "data": stage.data}
    write_atomically(context, f"results/{name}.json", json.dumps(content, ensure_ascii=False))
    kept = {key: value for key, value in content["metrics"].items() if isinstance(value, int | float)}
    seconds, tokens = content["seconds"], content["tokens"]
    speed = {"tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)} if tokens else {}
    return {**kept, "seconds": round(seconds, 3), **speed}


def _answered(
    context: Context, name: str, stage: Evaluate, samples: list[Sample], policy: Policy | None
) -> dict[str, Any]:
    """What answers came to. Those that are finished are written, also when something ends the evaluation early."""
    finished: list[Answer] = []
    kept = KeptAnswers(context, name)
    started = time.perf_counter()
    try:
        asking = ask if stage.plans is None else ask_by_plans
        answers = asking(context, kept, stage, samples, policy, context.verify, finished.append)
        seconds = kept.seconds + time.perf_counter() - started
        result = summarise(
            answers, n=stage.n, sampling=sampling_of(stage, context.recipe.seed), name=name, passes=stage.passes
        )
    finally:
        context.journal.restart_stage()
        context.journal.answers(name, [answer.to_json() for answer in finished])
    metrics = dict(result.metrics)
    if stage.plans is not None:
        metrics |= plan_metrics(answers, stage.plans, metrics["accuracy"])
    if policy is not None:
        metrics |= _likelihood(context, policy, samples, stage)
        sequences = _sequences(policy, samples, answers, stage)
        metrics |= _drift(context, policy, sequences, stage)
        metrics |= _passed_over(context, policy, sequences, stage)
        metrics |= _reranked(context, answers, sequences, stage)
    return {
        "metrics": metrics,
        "problems": {problem.sample_id: problem.right / problem.draws for problem in result.problems},
        "level": result.level,
        "seconds": seconds,
        "tokens": sum(answer.tokens for answer in answers),
        "result": result.to_json(),
    }


def _likelihood(context: Context, policy: Policy, samples: list[Sample], stage: Evaluate) -> dict[str, float]:
    """Mean log-probability of the given responses' tokens (nats) and its perplexity, where the data have responses."""
    shown = [sample for sample in samples if sample.response]
    rendered = render_batch(shown, policy.tokenizer, asked_as(stage, policy.context_length)) if shown else []
    sequences = [item.sequence for item in rendered if not isinstance(item, Refusal)]
    if not sequences:
        return {}
    logprobs, owners = [], []
    with context.terminal.bar(f"likelihood of {stage.data}", len(sequences), "responses") as bar:
        for index, scores in scored(policy, sequences, (), context.evaluation_tokens):
            logprobs.append(scores.logprobs.float().cpu().numpy())
            owners.append(np.full(len(scores.logprobs), index))
            bar.advance()
    found = log_likelihood(np.concatenate(logprobs), np.concatenate(owners))
    return {"log_likelihood": found.per_token, "perplexity": found.perplexity}


def _sequences(policy: Policy, samples: list[Sample], answers: list[Answer], stage: Evaluate) -> list[Sequence]:
    """The answers behind their prompts, their tokens as targets; none where nothing is measured along them."""
    if stage.reference is None and stage.passed_over is None and stage.rerank is None:
        return []
    rendering = asked_as(stage, policy.context_length)
    prompts = prompts_of(samples, policy.tokenizer, rendering, stage.max_new_tokens, stage.forced)
    return [
        behind_prompt(prompts[answer.sample_id], answer.token_ids, answer.sample_id)
        for answer in answers
        if answer.token_ids
    ]


def _drift(context: Context, policy: Policy, sequences: list[Sequence], stage: Evaluate) -> dict[str, float]:
    """`kl`: KL(model ‖ reference) a token, over the whole vocabulary, along the model's own answers (nats); `entropy`:
    that of the model there. Nothing where no reference is named."""
    if stage.reference is None:
        return {}
    policy.reference = Reference.of(load_policy(context, stage.reference))
    found = mean_scores(policy, sequences, (REVERSE_KL, ENTROPY), context.evaluation_tokens)
    return {"kl": found["reverse_kl"], "entropy": found["entropy"]}


def _reranked(context: Context, answers: list[Answer], sequences: list[Sequence], stage: Evaluate) -> dict[str, float]:
    """`reranked@k`: see `evaluation.reranked`."""
    if stage.rerank is None:
        return {}
    drawn = [answer for answer in answers if answer.token_ids]
    return reranked(drawn, rewards_of(context, stage.rerank, sequences).tolist(), n=stage.n)


def _passed_over(context: Context, policy: Policy, sequences: list[Sequence], stage: Evaluate) -> dict[str, float]:
    """`passed_over`: share of the positions of thinking at which the token that ends it was among the five likeliest,
    and another was drawn; `passed_over_at_line_ends`: of those where that other one ended a line."""
    if stage.passed_over is None:
        return {}
    stop = _stop_token(policy.tokenizer, stage.passed_over)
    found = passed_over(
        policy, sequences, stop, line_ends=_line_ends(policy.tokenizer), token_budget=context.evaluation_tokens
    )
    shares = {"passed_over": found.share, "passed_over_at_line_ends": found.share_at_line_ends}
    return {name: share for name, share in shares.items() if share is not None}


def _stop_token(tokenizer: Any, text: str) -> int:
    """Raises `UserError` where the tokenizer cuts `text` into several tokens."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if len(tokens) != 1:
        raise UserError(f"passed_over: '{text}' is {len(tokens)} tokens of this model; name the one that ends thinking")
    return int(tokens[0])


def _line_ends(tokenizer: Any) -> list[int]:
    """Tokens whose text holds a line break."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [token for token, text in enumerate(texts) if "\n" in text]
