"""The models that a curate stage names, as its functions see them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from posttrain.data import Sample
from posttrain.data.encoding import encode
from posttrain.data.rendering import turn_end_tokens
from posttrain.policy import load_tokenizer
from posttrain.recipe import Curate
from posttrain.stages.context import Context
from posttrain.stages.encoded import rendering_of
from posttrain.stages.models import load_policy
from posttrain.stages.reference_scores import stored_logprobs
from posttrain.stages.shape import Shape


@dataclass(frozen=True)
class AskedModel:
    """A `LanguageModel`: loaded when something is asked that no earlier run has left an answer to, and let go after."""

    context: Context
    stage: Curate
    name: str

    def logprobs(self, samples: list[Sample], *, ends: bool = True) -> list[npt.NDArray[np.float32] | None]:
        """For each sample `[T]`; see `LanguageModel`. Raises `UserError` where more are unreadable than data allow."""
        context = self.context
        tokenizer = load_tokenizer(context.model(self.name).path)
        rendering = rendering_of(self.stage, Shape.of(context.origin(self.name)).model)
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
