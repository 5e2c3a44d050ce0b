"""A train stage's own answers as its data: questions, engine, rewards and advantages become a source."""

import math
import shutil
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.advantages import NEED_BASELINE, NEED_VALUES, READ_TOKENS, build_advantage
from posttrain.data import Origin, Sample, Sequence
from posttrain.data.rendering import Rendering, turn_end_tokens
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.evaluation import Answer
from posttrain.generation import Completion, Prompt, Sampling
from posttrain.generation.dialogue import Generate as Draw
from posttrain.generation.dialogue import converse
from posttrain.generation.local import LocalEngine
from posttrain.objectives import Objective
from posttrain.policy import Policy, load_tokenizer
from posttrain.recipe import RolloutServer, RolloutSource, Train
from posttrain.rewards import Ask, build_reward, reward_models, reward_names
from posttrain.sources import Source
from posttrain.sources.answering import Answering, Generate
from posttrain.sources.beginnings import build_beginning, check_rounds
from posttrain.sources.rollout import Question, Rollout, RolloutSettings
from posttrain.sources.rollouts import Rollouts
from posttrain.stages.asking import questions, sampling_of
from posttrain.stages.context import Context
from posttrain.stages.encoded import demonstrations_of, prompts_of
from posttrain.stages.judging import check_judge
from posttrain.stages.models import load_policy
from posttrain.stages.served_policy import PROBES, check_served, served_policy
from posttrain.stages.shape import check_one_vocabulary
from posttrain.stages.supply import Numbers
from posttrain.training.step import score_sequences


class RolloutSupply:
    """Questions that are asked round after round, and how their answers are scored."""

    def __init__(
        self,
        context: Context,
        name: str,
        stage: Train,
        rules: RolloutSource,
        objective: Objective,
        tokenizer: Any,
        rendering: Rendering,
    ) -> None:
        self.context, self.name, self.stage, self.rules = context, name, stage, rules
        self.reward, self.advantage = build_reward(rules.reward), build_advantage(rules.advantage)
        _check(context, stage, rules, objective)
        self.samples = questions(context, stage.data)
        self._check_answers()
        self.rendering = rendering
        self.prompts = prompts_of(self.samples, tokenizer, rendering, rules.max_new_tokens)
        self.beginning = None if rules.begin is None else build_beginning(rules.begin)
        self.demonstrations: dict[str, npt.NDArray[np.int32]] = {}
        if self.beginning is not None:
            check_rounds(self.beginning, rules.n)
            self.demonstrations = demonstrations_of(
                self.samples, self.prompts, tokenizer, rendering, rules.max_new_tokens
            )
        ends = tuple(sorted(turn_end_tokens(tokenizer, rendering)))
        sampling = replace(sampling_of(rules, context.recipe.seed), stop_tokens=ends)
        advantage = _name(rules.advantage)
        same = {
            field.name: getattr(rules, field.name) for field in fields(RolloutSettings) if hasattr(rules, field.name)
        }
        self.settings = RolloutSettings(
            **same,
            sampling=sampling,
            values=advantage in NEED_VALUES,
            greedy=advantage in NEED_BASELINE,
            compared=_reads_advantage(objective),
        )
        rounds = math.ceil(stage.epochs * len(self.samples) / rules.prompts)
        self.steps = rounds * self.settings.updates
        self.steps_per_epoch = len(self.samples) / rules.prompts * self.settings.updates

    def numbers(self) -> tuple[Numbers, tuple[str, ...]]:
        """Questions, answers and updates; see `Supply.numbers`."""
        rules, steps = self.rules, self.stage.steps or self.steps
        rounds = math.ceil(steps / self.settings.updates)
        found: Numbers = {
            "questions": len(self.samples),
            "steps": steps,
            "rounds": rounds,
            "epochs": round(rounds * rules.prompts / len(self.samples), 3),
            "answers_per_round": rules.prompts * rules.n,
            "updates_per_round": self.settings.updates,
            "answers": rounds * rules.prompts * rules.n,
            "longest_prompt": max(len(tokens) for tokens in self.prompts.values()),
        }
        if self.beginning is not None:
            found["demonstrations"] = sum(len(tokens) > 1 for tokens in self.demonstrations.values())
        return found, self._check_server(found)

    def _check_server(self, found: Numbers) -> tuple[str, ...]:
        rules = self.rules.server
        if rules is None:
            return ()
        note = check_served(
            rules,
            load_tokenizer(self.context.origin(self.stage.init_from).path),
            sync=rules.sync,
            folder=self._shared_folder(rules),
            adapter=self.stage.adapter is not None,
            sampling=self.settings.sampling,
            longest_prompt=int(found["longest_prompt"]),
        )
        return (note,)

    def cache_reference(self, reference: Policy) -> None:
        """Refused: what is drawn anew has no scores to keep."""
        raise UserError("cache_reference scores fixed data, and rollouts are drawn anew: leave it out")

    def source(self, policy: Policy) -> Source:
        """See `Supply.source`."""
        context = self.context
        judges = {name: load_policy(context, name) for name in reward_models(self.rules.reward)}

        def ask(step: Step) -> Ask:
            return lambda model, sequences, needs: (
                step.score(sequences, needs)
                if model is None
                else score_sequences(
                    judges[model], context.micro_batch_tokens(self.stage), context.ranks, sequences, needs, step
                )
            )

        answering = Answering(
            self.settings,
            self._generate(policy),
            self.reward,
            context.verify,
            ask,
            self.beginning,
            lambda tokens: str(policy.tokenizer.decode(tokens.tolist())),
        )
        nothing = np.zeros(0, np.int32)
        return Rollouts(
            [Question(s, self.prompts[s.id], self.demonstrations.get(s.id, nothing)) for s in self.samples],
            self.settings,
            answering,
            advantage=self.advantage,
            seed=context.recipe.seed,
            record=self._record,
            rank=context.ranks.rank,
            ranks=context.ranks.count,
        )

    def _generate(self, policy: Policy) -> Generate:
        """Answers of this very policy, or of a server that is sent its weights; in several turns where asked for."""
        draw = self._served(policy) if self.rules.server is not None else self._local(policy)

        def generate(
            samples: List[Sample], prompts: List[Prompt], n: int, sampling: Sampling, step: Step
        ) -> List[Completion]:
            drawing = draw(step)
            if self.rules.turns == 1:
                return drawing(prompts, n, sampling)
            return converse(
                drawing,
                prompts,
                n,
                sampling,
                samples=samples,
                environment=self.context.environment,
                tokenizer=policy.tokenizer,
                rendering=self.rendering,
                turns=self.rules.turns,
            )

        return generate

    def _local(self, policy: Policy) -> Callable[[Step], Draw]:
        engine = LocalEngine(policy.model, policy.tokenizer, slots=self.rules.slots)

        def generate(prompts: List[Prompt], n: int, sampling: Sampling) -> list[Completion]:
            with policy.computing():
                return engine.generate(prompts, n, sampling) if prompts else []

        return lambda step: generate

    def _served(self, policy: Policy) -> Callable[[Step], Draw]:
        rules = self.rules.server
        assert rules is not None
        served = served_policy(
            policy,
            rules,
            self.context.ranks,
            sync=rules.sync,
            folder=self._shared_folder(rules),
            seen_as=rules.seen_as,
            probe=[Prompt(self.prompts[sample.id]) for sample in self.samples[:PROBES]],
            sampling=self.settings.sampling,
            tolerance=rules.probe_tolerance,
            timeout=rules.timeout,
        )

        def draw(step: Step) -> Draw:
            gap = served.synchronise(step.index)
            if gap is not None:
                step.report["probe_gap"] = (gap, 1)
            return served.generate

        return draw

    def _shared_folder(self, rules: RolloutServer) -> Path:
        return Path(rules.folder) if rules.folder else self.context.folder / "served" / self.name

    def probe(self, count: int) -> list[Sequence]:
        """The first questions, read as if they were answers."""
        return [_as_target(self.prompts[sample.id], sample.id) for sample in self.samples[:count]]

    def summary(self) -> dict[str, Any]:
        """How many questions there are. The last weights that a server was sent are removed from the run folder."""
        self.context.ranks.on_main(
            lambda: shutil.rmtree(self.context.folder / "served" / self.name, ignore_errors=True)
        )
        return {"questions": len(self.samples)}

    def _record(self, rollouts: List[Rollout], step: int) -> None:
        """Every rollout with its score, in `samples/<stage>.jsonl`."""
        shares = self.context.ranks.gather([_row(rollout, step) for rollout in rollouts])
        self.context.journal.answers(self.name, [row for share in shares for row in share])

    def _check_answers(self) -> None:
        if self.rules.turns > 1:
            for sample in self.samples:
                self.context.interactive(sample)
        if "task" not in reward_names(self.rules.reward):
            return
        missing = [sample for sample in self.samples if not self.context.has_verifier(sample)]
        if missing:
            raise UserError(
                f"data '{self.stage.data}': {len(missing)} of {len(self.samples)} samples have no 'answer', which "
                "reward 'task' compares with; add a column 'answer', or choose another reward"
            )


def _name(spec: str | dict[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec["name"])


def _reads_advantage(objective: Objective) -> bool:
    return any("advantage" in term.columns for term in objective.terms)


def _check(context: Context, stage: Train, rules: RolloutSource, objective: Objective) -> None:
    """Refuse what cannot learn: groups of one, and losses that do not read rollouts."""
    name, reads = _name(rules.advantage), _reads_advantage(objective)
    compares = name in ("group", "leave_one_out")
    if compares and reads and (rules.learned or rules.n) < 2:
        raise UserError(
            f"advantage '{name}' compares the answers to a question: 'n' must be 2 or more, and so must "
            f"'learned', found {rules.learned or rules.n}"
        )
    if compares and reads and rules.choose in ("right", "best"):
        raise UserError(
            f"advantage '{name}' compares answers, and choose: {rules.choose} leaves none to compare with: set "
            "advantage to 'reward', or choose to 'all'"
        )
    against_model = any(need.reference and need.differentiable for term in objective.terms for need in term.needs)
    if not reads and rules.choose == "all" and not against_model:
        raise UserError(
            "rollouts are learned from through the column 'advantage', and no term of the objective reads it: "
            "add 'grpo', 'ppo', 'reinforce' ..., or choose which answers to imitate: choose: right, best or pairs"
        )
    if objective.needs_pairs != (rules.choose == "pairs"):
        raise UserError("a loss of preference pairs learns from rollouts with choose: pairs, and only such a loss does")
    if rules.kl_in_reward and name not in READ_TOKENS:
        raise UserError(
            f"kl_in_reward is a reward of each token, which advantage '{name}' does not read: take "
            f"{' or '.join(READ_TOKENS)}, or add the term 'kl' to the objective"
        )
    if rules.kl_in_reward and stage.reference is None and not objective.needs_reference:
        raise UserError("kl_in_reward needs a reference: name the model in 'reference' ('base', an earlier stage ...)")
    if rules.begin is not None and build_beginning(rules.begin).origin == Origin.HINT:
        open_to_all = [term.name for term in objective.terms if term.origins is None]
        if open_to_all:
            raise UserError(
                f"answers begin with hints, and the term '{open_to_all[0]}' does not say whether it learns from them: "
                "give every term 'origins': [rollout], [hint], or both"
            )
    for model in reward_models(rules.reward):
        check_one_vocabulary(context, stage.init_from, model)
    for model in reward_models(rules.reward, judges=True):
        check_judge(context, model)


def _as_target(tokens: Any, sample_id: str) -> Sequence:
    drawn = np.arange(len(tokens)) > 0
    return Sequence(tokens, drawn, np.full(len(tokens), Origin.PROMPT, np.uint8), sample_id)


def _row(rollout: Rollout, step: int) -> dict[str, Any]:
    attempt, score = rollout.attempt, rollout.score
    answer = Answer(
        sample_id=attempt.sample.id,
        task=attempt.sample.task,
        prompt=attempt.sample.prompt_text,
        expected=attempt.sample.answer,
        text=attempt.text,
        value=score.value if score.error is None else None,
        parts=score.parts,
        info=score.info,
        error=score.error,
        finish_reason=attempt.finish_reason,
        tokens=attempt.length,
        logprob=float(attempt.logprobs.sum()),
        draw=rollout.draw,
        step=step,
    )
    return answer.to_json() | {"advantage": round(rollout.advantage, 4)}
