"""Drawing answers to a data set's questions and scoring them: evaluation, self-generated data, watching a training."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from posttrain.data import Sample
from posttrain.data.rendering import Rendering, Template, turn_end_tokens
from posttrain.errors import UserError
from posttrain.evaluation import Answer, EvaluationResult, evaluate
from posttrain.generation import Sampling
from posttrain.generation.local import LocalEngine
from posttrain.policy import Policy, load_tokenizer
from posttrain.recipe import Decoding, Evaluate, Generate
from posttrain.stages.context import Context
from posttrain.stages.encoded import prompts_of
from posttrain.stages.shape import Shape
from posttrain.terminal import Bar
from posttrain.training.loop import Interrupted

PLANNED_PROMPTS = 1000
"""How many prompts a plan renders to see that answers fit behind them; the others are looked at by the stage."""


def sampling_of(decoding: Decoding, seed: int) -> Sampling:
    """The sampling rules of a stage."""
    return Sampling(
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        min_p=decoding.min_p,
        stop=tuple(decoding.stop),
        seed=seed,
    )


def questions(context: Context, name: str, count: int | None = None) -> list[Sample]:
    """The samples of a data set. Raises `UserError` when there are none, or when one has no answer to score against."""
    samples = list(islice(context.samples(context.data(name)), count))
    if not samples:
        raise UserError(f"data '{name}' is empty: at least one problem is needed")
    missing = [sample for sample in samples if sample.answer is None]
    if missing:
        raise UserError(
            f"data '{name}': {len(missing)} of {len(samples)} samples have no 'answer' to score against (the first: "
            f"sample {missing[0].id}); GSM8K's form 'question'/'answer' with '#### 42' gives one, or a field 'answer'"
        )
    return samples


def plan_questions(context: Context, decoding: Evaluate | Generate) -> dict[str, int | float | str]:
    """Check the model and the data that a stage asks, and that an answer fits behind every prompt; count them."""
    origin = context.origin(decoding.model)
    tokenizer, shape = load_tokenizer(origin.path), Shape.of(origin)
    if context.pending(context.data(decoding.data)):
        return {"answers_each": decoding.n}
    samples = questions(context, decoding.data)
    some = samples[:PLANNED_PROMPTS]
    prompts = prompts_of(
        some, tokenizer, decoding.template, decoding.max_new_tokens, shape.context, decoding.template_options
    )
    longest = max(len(prompt) for prompt in prompts.values())
    return {"problems": len(samples), "answers": len(samples) * decoding.n, "longest_prompt": longest}


def counting(context: Context, bar: Bar) -> Callable[[int], None]:
    """Progress of an engine on `bar`; stops it when the user asks to: answers that are not all there are drawn anew."""

    def progress(tokens: int) -> None:
        bar.advance(tokens)
        if context.should_stop():
            raise Interrupted

    return progress


def ask(
    context: Context,
    policy: Policy,
    samples: list[Sample],
    decoding: Decoding,
    template: Template,
    name: str,
    *,
    template_options: Mapping[str, Any],
    step: int | None = None,
    seed: int = 0,
    record: Callable[[Answer], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Draw `decoding.n` answers to every sample with the policy as it is, score and summarise them."""
    tokenizer: Any = policy.tokenizer
    prompts = prompts_of(samples, tokenizer, template, decoding.max_new_tokens, policy.context_length, template_options)
    engine = LocalEngine(policy.model, tokenizer, slots=decoding.slots, progress=progress)
    # A base model's own end token is often not the one that the chat template, and so its training, ends a turn with.
    ends = turn_end_tokens(
        tokenizer, Rendering(policy.context_length, template=template, template_options=template_options)
    )
    with policy.computing():
        return evaluate(
            engine,
            samples,
            context.verify,
            render_prompt=lambda sample: prompts[sample.id],
            n=decoding.n,
            sampling=replace(sampling_of(decoding, seed), stop_tokens=tuple(sorted(ends))),
            name=name,
            step=step,
            record=record,
        )
