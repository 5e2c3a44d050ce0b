"""A train stage's own answers as its data: questions, engine, rewards and advantages become a source."""

import math
from collections.abc import Sequence as List
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.advantages import NEED_BASELINE, NEED_VALUES, build_advantage
from posttrain.data import Origin, Sample, Sequence
from posttrain.data.rendering import Rendering
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.evaluation import Answer
from posttrain.generation import Prompt
from posttrain.objectives import Objective
from posttrain.policy import Policy
from posttrain.recipe import RolloutSource, Train
from posttrain.recipe.strict import name_of
from posttrain.rewards import Ask, build_reward, reward_models, reward_names
from posttrain.sources import Source
from posttrain.sources.answering import Answering
from posttrain.sources.beginnings import build_beginning, step_ends
from posttrain.sources.rollout import Question, Rollout, RolloutSettings
from posttrain.sources.rollouts import Rollouts
from posttrain.sources.temperature import build_temperature
from posttrain.stages.answers.asking import questions, sampling_of, with_ends
from posttrain.stages.context import Context
from posttrain.stages.encoded import demonstrations_of, prompts_of
from posttrain.stages.models import load_policy
from posttrain.stages.supplies.drawing import Drawing
from posttrain.stages.supplies.learnable import check_rollouts, reads_advantage
from posttrain.stages.supplies.served_policy import PROBES
from posttrain.stages.supplies.supply import Numbers
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
        self.temperature = build_temperature(rules.temperature)
        self.beginning = None if rules.begin is None else build_beginning(rules.begin)
        check_rollouts(context, stage, rules, objective, self.beginning)
        self.samples = questions(context, stage.data)
        self._check_answers()
        self.prompts = prompts_of(self.samples, tokenizer, rendering, rules.max_new_tokens)
        self.demonstrations: dict[str, npt.NDArray[np.int32]] = {}
        if self.beginning is not None or rules.demonstrate is not None:
            self.demonstrations = demonstrations_of(
                self.samples, self.prompts, tokenizer, rendering, rules.max_new_tokens
            )
        sampling = with_ends(sampling_of(rules, context.recipe.seed), tokenizer, rendering)
        advantage = name_of(rules.advantage)
        # Most settings of a source are what its recipe says, under the same names.
        named = {field.name for field in fields(RolloutSettings)} & set(type(rules).model_fields)
        self.settings = RolloutSettings(
            **{name: getattr(rules, name) for name in named},
            sampling=sampling,
            values=advantage in NEED_VALUES,
            greedy=advantage in NEED_BASELINE,
            compared=reads_advantage(objective),
        )
        probes = [Prompt(self.prompts[sample.id]) for sample in self.samples[:PROBES]]
        self.drawing = Drawing(context, name, rules, sampling, rendering, probes)
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
        if self.demonstrations:
            found["demonstrations"] = sum(len(tokens) > 1 for tokens in self.demonstrations.values())
        return found, self.drawing.check(self.stage, int(found["longest_prompt"]))

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
            self.drawing.generate(policy),
            self.reward,
            context.verify,
            ask,
            self.beginning,
            lambda tokens: str(policy.tokenizer.decode(tokens.tolist())),
        )
        return Rollouts(
            [self._question(sample, policy.tokenizer) for sample in self.samples],
            self.settings,
            answering,
            advantage=self.advantage,
            seed=context.recipe.seed,
            temperature=self.temperature,
            record=self._record,
            rank=context.ranks.rank,
            ranks=context.ranks.count,
        )

    def _question(self, sample: Sample, tokenizer: Any) -> Question:
        demonstration = self.demonstrations.get(sample.id, np.zeros(0, np.int32))
        steps: tuple[int, ...] = ()
        if self.beginning is not None and self.beginning.unit == "step":
            ends = self.settings.sampling.stop_tokens

            def said(tokens: List[int]) -> str:
                return str(tokenizer.decode([token for token in tokens if token not in ends]))

            steps = tuple(step_ends(demonstration.tolist(), said))
        return Question(sample, self.prompts[sample.id], demonstration, steps)

    def probe(self, count: int) -> list[Sequence]:
        """The first questions, read as if they were answers."""
        return [_as_target(self.prompts[sample.id], sample.id) for sample in self.samples[:count]]

    def summary(self) -> dict[str, Any]:
        """How many questions there are."""
        self.drawing.clear()
        return {"questions": len(self.samples)}

    def _record(self, rollouts: List[Rollout], step: int) -> None:
        """Every rollout with its score, in `samples/<stage>.jsonl`."""
        shares = self.context.ranks.gather([_row(rollout, step) for rollout in rollouts])
        self.context.journal.answers(self.name, [row for share in shares for row in share])

    def _check_answers(self) -> None:
        if self.rules.turns > 1:
            for sample in self.samples:
                self.context.interactive(sample)
        if "task" not in reward_names(self.rules.reward) and self.rules.demonstrate is None:
            return
        missing = [sample for sample in self.samples if not self.context.has_verifier(sample)]
        if missing:
            raise UserError(
                f"data '{self.stage.data}': {len(missing)} of {len(self.samples)} samples have no right answer, which "
                "reward 'task' and 'demonstrate' compare with: give rows a column 'answer', beside 'prompt' or "
                "'messages' (beside 'question' it is the response, whose right answer stands behind '####'; "
                "columns={question: prompt} renames it), or choose another reward"
            )


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
