"""Who draws the answers that a train stage learns from: the policy in this process, or a server that is sent it."""

import shutil
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass
from pathlib import Path

from posttrain.data import Sample
from posttrain.data.rendering import Rendering
from posttrain.data.step import Step
from posttrain.generation import Completion, Prompt, Sampling
from posttrain.generation.dialogue import Generate as Draw
from posttrain.generation.dialogue import converse
from posttrain.generation.local import LocalEngine
from posttrain.policy import Policy, load_tokenizer
from posttrain.recipe import RolloutServer, RolloutSource, Train
from posttrain.sources.answering import Generate
from posttrain.stages.context import Context
from posttrain.stages.supplies.served_policy import check_served, served_policy


@dataclass(frozen=True)
class Drawing:
    """How the stage `name` gets its answers. `probes`: what a server is asked to see whether it has the weights."""

    context: Context
    name: str
    rules: RolloutSource
    sampling: Sampling
    rendering: Rendering
    probes: List[Prompt]

    def check(self, stage: Train, longest_prompt: int) -> tuple[str, ...]:
        """What the server, if there is one, says of itself. Raises `UserError` where it cannot draw for this stage."""
        server = self.rules.server
        if server is None:
            return ()
        note = check_served(
            server,
            load_tokenizer(self.context.origin(stage.init_from).path),
            sync=server.sync,
            folder=self._shared_folder(server),
            adapter=stage.adapter is not None,
            sampling=self.sampling,
            longest_prompt=longest_prompt,
        )
        return (note,)

    def generate(self, policy: Policy) -> Generate:
        """Answers of this very policy, or of a server that is sent its weights; in several turns where asked for."""
        server = self.rules.server
        draw = self._local(policy) if server is None else self._served(policy, server)

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

    def clear(self) -> None:
        """Remove the last weights that a server was sent, where they were written to the run's folder."""
        server = self.rules.server
        if server is not None and server.folder is None:
            self.context.ranks.on_main(lambda: shutil.rmtree(self._shared_folder(server), ignore_errors=True))

    def _local(self, policy: Policy) -> Callable[[Step], Draw]:
        engine = LocalEngine(policy.model, policy.tokenizer, slots=self.rules.slots)

        def generate(prompts: List[Prompt], n: int, sampling: Sampling) -> list[Completion]:
            with policy.computing():
                return engine.generate(prompts, n, sampling) if prompts else []

        return lambda step: generate

    def _served(self, policy: Policy, server: RolloutServer) -> Callable[[Step], Draw]:
        served = served_policy(
            policy,
            server,
            self.context.ranks,
            sync=server.sync,
            folder=self._shared_folder(server),
            seen_as=server.seen_as,
            probe=self.probes,
            sampling=self.sampling,
            tolerance=server.probe_tolerance,
            timeout=server.timeout,
        )

        def draw(step: Step) -> Draw:
            gap = served.synchronise(step.index)
            if gap is not None:
                step.report["probe_gap"] = (gap, 1)
            return served.generate

        return draw

    def _shared_folder(self, server: RolloutServer) -> Path:
        return Path(server.folder) if server.folder else self.context.folder / "served" / self.name
