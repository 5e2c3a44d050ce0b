"""Answers kept as they are drawn, a line each: a stage that was cut off, however it was, draws only what is missing."""

import json
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.errors import UserError
from posttrain.generation import Completion, Engine, Prompt, Sampling
from posttrain.stages.context import Context
from posttrain.stages.fingerprints import digest

MakeEngine = Callable[[Callable[[Completion], None]], Engine]
"""The engine that calls its argument with every answer that is finished."""


class KeptAnswers:
    """What a stage has drawn so far: `checkpoints/<stage>.jsonl`, removed when the stage is finished.

    A line is found again by all that its answer follows from: who is asked, the prompt's tokens, its random stream and
    the sampling rules. What is asked otherwise after a change of the recipe is drawn, and nothing else: a stage that
    failed because of its verifier asks nobody again. An answer that was not finished is drawn from its beginning, by
    the same random numbers: it is the same, as far as the device computes the same in a batch of another size.
    """

    def __init__(self, context: Context, stage: str) -> None:
        self.stage = stage
        self.seconds = 0.0
        """What it took, in earlier calls, to draw those of the kept answers that were asked for again."""
        self._path = kept_path(context.folder, stage)
        self._found = dict(self._lines())
        self._last = time.perf_counter()

    def engine(self, asked: str, progress: Callable[[int], None], make: MakeEngine) -> MakeEngine:
        """Engines that draw with those of `make` what is not kept; kept answers come first.

        `asked` names who answers, `progress` is told the tokens of kept answers.
        """
        return partial(_KeepingEngine, self, asked, progress, make)

    def find(self, name: str, sample: int) -> Completion | None:
        """An answer by the `name` of its prompt and its number."""
        found = self._found.get((name, sample))
        if found is None:
            return None
        self.seconds += found.seconds
        return found.completion

    def add(self, name: str, completion: Completion) -> None:
        """Keep an answer. Raises `UserError` where it cannot be written."""
        now = time.perf_counter()
        row = {
            "prompt": name,
            "sample": completion.sample,
            "seconds": round(now - self._last, 6),
            "finish_reason": completion.finish_reason,
            "text": completion.text,
            "tokens": _packed(completion.tokens),
            "logprobs": _packed(completion.logprobs),
            "sampling_logprobs": _packed(completion.sampling_logprobs),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write '{self._path}': {error.strerror or error}; mend that and run the same command again: it "
                "goes on from the answers that are there"
            ) from error
        # What has been drawn in this call is timed by whoever measures this call.
        self._found[name, completion.sample] = _Kept(completion, 0.0)
        self._last = now

    def restart_clock(self) -> None:
        """What is drawn next is drawn from now on."""
        self._last = time.perf_counter()

    def _lines(self) -> "list[tuple[tuple[str, int], _Kept]]":
        """The whole lines of the file; half of one, as a kill leaves it, is cut off."""
        if not self._path.is_file():
            return []
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self._path.open("r+b") as file:
                file.truncate(whole)
        return [self._kept(line, number) for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1)]

    def _kept(self, line: bytes, number: int) -> "tuple[tuple[str, int], _Kept]":
        try:
            row = json.loads(line)
            return (row["prompt"], row["sample"]), _Kept(_completion(row), row["seconds"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"line {number} of '{self._path}' is no answer as they are kept there ({error}): take the line out, "
                "and run the same command again: that answer is drawn anew"
            ) from error


@dataclass(frozen=True)
class _Kept:
    """An answer, and how many seconds it came behind the one before it."""

    completion: Completion
    seconds: float


@dataclass(frozen=True)
class _KeepingEngine:
    kept: KeptAnswers
    asked: str
    progress: Callable[[int], None]
    make: MakeEngine
    drawn: Callable[[Completion], None]

    def generate(self, prompts: List[Prompt], n: int, sampling: Sampling) -> list[Completion]:
        """See `Engine`."""
        rules = digest([self.asked, asdict(sampling)])
        keyed = [replace(p, key=place if p.key is None else p.key) for place, p in enumerate(prompts)]
        names = [digest([rules, prompt.key, prompt.tokens.tolist()]) for prompt in keyed]
        completions: list[Completion] = []
        places: list[int] = []
        missing: list[Prompt] = []
        for place, (name, prompt) in enumerate(zip(names, keyed, strict=True)):
            found = {number: self.kept.find(name, number) for number in prompt.numbers(n)}
            completions += [replace(one, prompt=place) for one in found.values() if one is not None]
            if left := tuple(number for number, one in found.items() if one is None):
                places.append(place)
                missing.append(replace(prompt, samples=left))
        for completion in completions:
            self.drawn(completion)
            self.progress(len(completion.tokens))

        def keep(completion: Completion) -> None:
            self.kept.add(names[places[completion.prompt]], completion)
            self.drawn(replace(completion, prompt=places[completion.prompt]))

        if missing:
            self.kept.restart_clock()
            drawn = self.make(keep).generate(missing, n, sampling)
            completions += [replace(one, prompt=places[one.prompt]) for one in drawn]
        return sorted(completions, key=lambda completion: (completion.prompt, completion.sample))


def kept_path(folder: Path, stage: str) -> Path:
    """The file of a stage's answers in a run folder."""
    return folder / "checkpoints" / f"{stage}.jsonl"


def _packed(values: npt.NDArray[Any]) -> str:
    return b64encode(values.tobytes()).decode()


def _completion(row: dict[str, Any]) -> Completion:
    """At prompt 0 of a call, until it is asked for."""
    return Completion(
        prompt=0,
        sample=row["sample"],
        tokens=np.frombuffer(b64decode(row["tokens"]), np.int32),
        logprobs=np.frombuffer(b64decode(row["logprobs"]), np.float32),
        sampling_logprobs=np.frombuffer(b64decode(row["sampling_logprobs"]), np.float32),
        finish_reason=row["finish_reason"],
        text=row["text"],
    )
