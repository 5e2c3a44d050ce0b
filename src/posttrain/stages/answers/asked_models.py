"""The models that a curate stage names, as its functions see them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from posttrain.curation import Drawing, Reply
from posttrain.data import Sample
from posttrain.data.encoding import encode
from posttrain.data.rendering import Rendering, turn_end_tokens
from posttrain.policy import load_tokenizer
from posttrain.recipe import Curate
from posttrain.rewards import is_right
from posttrain.stages.answers.drawn_answers import check_answers, drawn_answers
from posttrain.stages.context import Context
from posttrain.stages.encoded import rendering_of
from posttrain.stages.models import load_policy
from posttrain.stages.reference_scores import stored_logprobs
from posttrain.stages.shape import Shape


@dataclass(frozen=True)
class AskedModel:
    """A `LanguageModel`: loaded when something is asked, and let go after."""

    context: Context
    stage: Curate
    name: str
    stage_name: str

    def logprobs(self, samples: list[Sample], *, ends: bool = True) -> list[npt.NDArray[np.float32] | None]:
        """For each sample `[T]`; see `LanguageModel`. Raises `UserError` where more are unreadable than data allow."""
        context = self.context
        tokenizer = load_tokenizer(context.model(self.name).path)
        rendering = self._rendering()
        dataset = encode(
            [replace(sample, scalars={}) for sample in samples],  # they name stored tokens, and do not change them
            tokenizer,
            rendering,
            Path(context.folder).parent / ".cache",
            max_refused=context.data(self.stage.data).max_refused,
        )
        path = stored_logprobs(
            context, self.name, lambda: load_policy(context, self.name), dataset, context.evaluation_tokens
        )
        values: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
        bounds = np.concatenate([[0], np.cumsum(dataset.targets)])
        ending = np.array([] if ends else sorted(turn_end_tokens(tokenizer, rendering)), np.int32)
        found: dict[str, npt.NDArray[np.float32]] = {}
        for row in range(len(dataset)):
            logprobs, sequence = values[bounds[row] : bounds[row + 1]], dataset[row]
            found[sequence.sample_id] = logprobs[~np.isin(sequence.tokens[sequence.target], ending)]
        return [found.get(sample.id) for sample in samples]

    def draw(self, samples: list[Sample], drawing: Drawing) -> list[list[Reply]]:
        """For each sample the model's own answers to its question; see `LanguageModel`."""
        if drawing.scored:
            check_answers(self.context, self.stage.data, samples)
        asked = {sample.id: sample for sample in samples}
        replies: dict[str, list[Reply]] = {sample: [] for sample in asked}
        answers = drawn_answers(
            self.context,
            self.stage_name,
            self.name,
            load_policy(self.context, self.name),
            self._rendering(),
            list(asked.values()),
            drawing,
        )
        for answer in answers:
            right = None if answer.value is None else is_right(answer.value)
            found = answer.canonical
            if not drawing.scored:
                found = self.context.final_answer(asked[answer.sample_id], answer.text)
            replies[answer.sample_id].append(Reply(answer.text, right, found))
        return [replies[sample.id] for sample in samples]

    def _rendering(self) -> Rendering:
        return rendering_of(self.stage, Shape.of(self.context.origin(self.name)).model)
