"""Drawing answers to a data set's questions and scoring them: evaluation, self-generated data, watching a training."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.data import Sample
from posttrain.data.rendering import Rendering, turn_end_tokens
from posttrain.errors import UserError
from posttrain.evaluation import Answer, answer_of
from posttrain.generation import Completion, Engine, Prompt, Sampling, ThinkingRules
from posttrain.generation.local import LocalEngine
from posttrain.generation.sampling import check
from posttrain.policy import Policy, load_tokenizer
from posttrain.recipe import Asked, Decoding, RolloutSource
from posttrain.rewards import Verify
from posttrain.stages.answers.conversing import Conversation, conversation
from posttrain.stages.answers.judging import check_speaker
from posttrain.stages.answers.kept_answers import KeptAnswers, MakeEngine
from posttrain.stages.answers.serving import check_server, server_engine
from posttrain.stages.context import Context
from posttrain.stages.encoded import Forced, beginning, prompts_of, where
from posttrain.stages.fingerprints import deciding, digest
from posttrain.stages.shape import Shape, check_engine
from posttrain.terminal import Bar
from posttrain.training.loop import Interrupted

PLANNED_PROMPTS = 1000
"""How many prompts a plan renders to see that answers fit behind them; the others are looked at by the stage."""
MOVING = 0.9
"""The temperature at which a server is probed where that of the rollouts moves: not 1, at which nothing shows whether
its log-probs are those of what it draws from."""


def sampling_of(decoding: Decoding | RolloutSource, seed: int) -> Sampling:
    """The sampling rules of a stage. Raises `UserError` for values that cannot be drawn with.

    Where the temperature moves, `MOVING` stands in its place, until a round of rollouts begins.
    """
    sampling = Sampling(
        max_new_tokens=decoding.max_new_tokens,
        temperature=MOVING if isinstance(decoding.temperature, dict) else decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        min_p=decoding.min_p,
        stop=tuple(decoding.stop),
        thinking=None if decoding.thinking is None else ThinkingRules(**decoding.thinking.model_dump()),
        seed=seed,
    )
    check(sampling)
    return sampling


def questions(context: Context, name: str, count: int | None = None) -> list[Sample]:
    """The samples of a data set, each once. Raises `UserError` when there are none."""
    samples = list({sample.id: sample for sample in islice(context.samples(context.data(name)), count)}.values())
    if not samples:
        raise UserError(f"data '{name}' is empty: at least one problem is needed")
    return samples


def can_be_scored(context: Context, name: str, samples: list[Sample]) -> bool:
    """Is there something to score answers against? Raises `UserError` where some of the samples have it and some not.

    A sample has it that has an `answer`, or whose task scores answers without.
    """
    missing = [sample for sample in samples if not context.has_verifier(sample)]
    if missing and len(missing) < len(samples):
        raise UserError(
            f"data '{name}': {len(missing)} of {len(samples)} samples have no 'answer' to score against (the first: "
            f"{where(missing[0])}); give all of them one in a column 'answer', or none"
        )
    return not missing


def plan_questions(
    context: Context, decoding: Asked, samples: list[Sample] | None, *, forced: Forced | None = None
) -> tuple[dict[str, int | float | str], tuple[str, ...]]:
    """Check who answers, and that an answer fits behind every prompt; count. `samples` None: a stage writes them yet.

    `forced`: what answers begin with, where that is not the stage's. The second value is what the user should know.
    """
    sampling_of(decoding, 0)
    check_speaker(context, decoding.model)
    origin = context.origin(decoding.model)
    tokenizer, shape = load_tokenizer(origin.path), Shape.of(origin)
    if decoding.server is None:
        check_engine(shape.model)
        notes: tuple[str, ...] = ()
    else:
        notes = (check_server(decoding.server, tokenizer),)
    if samples is None:
        return {"answers_each": decoding.n}, notes
    prompts = prompts_of(
        samples[:PLANNED_PROMPTS],
        tokenizer,
        asked_as(decoding, shape.context),
        decoding.max_new_tokens,
        decoding.forced if forced is None else forced,
    )
    longest = max(len(prompt) for prompt in prompts.values())
    return {"problems": len(samples), "answers": len(samples) * decoding.n, "longest_prompt": longest}, notes


def asked_as(decoding: Asked, context_length: int) -> Rendering:
    """How questions become prompts."""
    return Rendering(context_length, template=decoding.template, template_options=decoding.template_options)


def ask(
    context: Context,
    kept: KeptAnswers,
    stage: Asked,
    samples: list[Sample],
    policy: Policy | None,
    verify: Verify | None,
    record: Callable[[Answer], None],
    *,
    forced: Forced | None = None,
) -> list[Answer]:
    """A stage's answers, of `policy` or, where there is none, of the stage's server; see `draw`.

    `forced`: what they begin with, where that is not the stage's.
    """
    forced = stage.forced if forced is None else forced
    asked = digest([context.model_fingerprint(stage.model), stage.server and deciding(stage.server)])
    verb = "evaluating" if stage.kind == "evaluate" else "generating"
    expected = len(samples) * stage.n * stage.max_new_tokens
    with context.terminal.bar(f"{verb} {kept.stage}", expected, "tokens at most") as bar:
        progress = counting(context, bar)
        keep = partial(kept.engine, asked, progress)
        if policy is None:
            return _served(context, stage, samples, verify, record, forced, keep, progress)
        rendering = asked_as(stage, policy.context_length)
        talk = conversation(context, stage, samples, policy.tokenizer, rendering)
        return draw(
            context,
            policy,
            samples,
            stage,
            rendering,
            verify,
            record,
            forced=forced,
            keep=keep,
            progress=progress,
            talk=talk,
        )


def _served(
    context: Context,
    stage: Asked,
    samples: list[Sample],
    verify: Verify | None,
    record: Callable[[Answer], None],
    forced: Forced,
    keep: Callable[[MakeEngine], MakeEngine],
    progress: Callable[[int], None],
) -> list[Answer]:
    """The answers of a stage's server. One that does not tell tokens ends turns by itself, and holds no dialogues."""
    origin, server = context.origin(stage.model), stage.server
    assert server is not None
    tokenizer, rendering = load_tokenizer(origin.path), asked_as(stage, Shape.of(origin).context)
    knows_tokens = server_engine(server, tokenizer).check() != "openai"
    talk = conversation(context, stage, samples, tokenizer, rendering)
    if talk is not None and not knows_tokens:
        raise UserError("dialogues go on from the very tokens that were drawn, and this server does not say which")
    sampling = sampling_of(stage, context.recipe.seed)
    return _drawn(
        keep(lambda drawn: server_engine(server, tokenizer, progress, drawn)),
        samples,
        prompts_of(samples, tokenizer, rendering, stage.max_new_tokens, forced),
        stage.n,
        with_ends(sampling, tokenizer, rendering) if knows_tokens else sampling,
        verify,
        record,
        forced=forced,
        talk=talk,
    )


def draw(
    context: Context,
    policy: Policy,
    samples: list[Sample],
    decoding: Decoding,
    rendering: Rendering,
    verify: Verify | None,
    record: Callable[[Answer], None],
    *,
    step: int | None = None,
    forced: Forced = "",
    keep: Callable[[MakeEngine], MakeEngine] | None = None,
    progress: Callable[[int], None] | None = None,
    talk: Conversation | None = None,
) -> list[Answer]:
    """Draw `decoding.n` answers to every sample with the policy as it is, and score them where `verify` is given.

    `record` gets every answer that is finished, also when something ends the drawing early. `keep` makes an engine one
    that draws what is not kept (see `KeptAnswers`). `talk` makes dialogues of the answers, which are recorded when all
    of them are finished.
    """
    tokenizer = policy.tokenizer

    def make_engine(drawn: Callable[[Completion], None]) -> Engine:
        return LocalEngine(policy.model, tokenizer, slots=decoding.slots, progress=progress, drawn=drawn)

    with policy.computing():
        return _drawn(
            make_engine if keep is None else keep(make_engine),
            samples,
            prompts_of(samples, tokenizer, rendering, decoding.max_new_tokens, forced),
            decoding.n,
            with_ends(sampling_of(decoding, context.recipe.seed), tokenizer, rendering),
            verify,
            record,
            step=step,
            forced=forced,
            talk=talk,
        )


def with_ends(sampling: Sampling, tokenizer: Any, rendering: Rendering) -> Sampling:
    """The rules with the template's end of a turn, which is often not a base model's own end token."""
    return replace(sampling, stop_tokens=tuple(sorted(turn_end_tokens(tokenizer, rendering))))


def _drawn(
    make_engine: MakeEngine,
    samples: list[Sample],
    prompts: Mapping[str, npt.NDArray[np.int32]],
    n: int,
    sampling: Sampling,
    verify: Verify | None,
    record: Callable[[Answer], None],
    *,
    step: int | None = None,
    forced: Forced = "",
    talk: Conversation | None = None,
) -> list[Answer]:
    asked = [Prompt(prompts[sample.id], place) for place, sample in enumerate(samples)]
    finished: list[Completion] = []
    completions: List[Completion] | None = None
    try:
        if talk is None:
            completions = make_engine(finished.append).generate(asked, n, sampling)
        else:
            completions = talk(make_engine(lambda turn: None), asked, n, sampling)
    finally:
        answers = []
        for completion in finished if completions is None else completions:
            sample = samples[completion.prompt]
            answers.append(answer_of(sample, completion, verify, step=step, forced=beginning(forced, sample)))
            record(answers[-1])
    return answers


def counting(context: Context, bar: Bar) -> Callable[[int], None]:
    """Progress of an engine on `bar`; stops it when the user asks to: answers that are not all there are drawn anew."""

    def progress(tokens: int) -> None:
        bar.advance(tokens)
        if context.should_stop():
            raise Interrupted

    return progress
