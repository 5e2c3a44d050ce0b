"""ToolRL's data (arXiv 2504.13958) from files that the user has: tools, a dialogue, and the calls or the reply due."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError
from posttrain.rewards import Score
from posttrain.rewards.tool_calls import MalformedCallError, parse_calls, same_calls
from posttrain.tasks.files import FileTask, Row
from posttrain.tasks.task import tasks


@dataclass(frozen=True)
class Turn(Row):
    """A row with the system prompt that declares its tools."""

    system: str


@tasks.register("toolrl")
class ToolRL(FileTask):
    """One step of a dialogue with tools: a JSON list of `instruction`, `input` and `output`, or ToolRL's Parquet file.

    Styles: "original" (thoughts, then calls or a reply) and "answer" (without the thoughts). Right is an answer with
    the calls of the file, in their order; where the file makes no call, one that makes none and replies.
    """

    name = "toolrl"
    fields = ("instruction", "input", "output")

    def row(self, fields: Mapping[str, Any]) -> Turn:
        """Read the calls; raises `ValueError` for an output whose calls are no JSON."""
        for name in self.fields:
            if not isinstance(fields[name], str) or not fields[name].strip():
                raise ValueError(f"'{name}' should be a text, but is {fields[name]!r:.60}")
        output = fields["output"].strip()
        calls = parse_calls(output)  # its error is a ValueError that says what is wrong
        return Turn(
            fields["input"],
            output,
            re.sub(r"<think>.*?</think>\s*", "", output, flags=re.DOTALL),
            len(calls),
            fields["instruction"],
        )

    def verify(self, sample: Sample, answer: str) -> Score:
        """1 or 0; `info["reason"]` is "found", "wrong", "missing" (no call, or no reply) or "malformed"."""
        wanted = parse_calls(sample.answer or "")
        try:
            calls = parse_calls(answer)
        except MalformedCallError:
            return Score(0.0, info={"reason": "malformed"})
        info = {"extracted": "\n".join(call.to_json() for call in calls)}
        if bool(calls) != bool(wanted) or (not wanted and "<response>" not in answer):
            return Score(0.0, info={**info, "reason": "wrong" if calls else "missing"})
        right = same_calls(calls, wanted)
        return Score(float(right), info={**info, "reason": "found" if right else "wrong"})

    def _sample(self, row: Row, meta: Mapping[str, Any]) -> Sample:
        assert isinstance(row, Turn)
        return Sample(
            prompt=({"role": "system", "content": row.system}, user(row.question)),
            response=(assistant(row.solution if meta["style"] == "original" else row.answer),),
            answer=row.answer,
            task=self.name,
            meta={**meta, "steps": row.steps},
        )

    def _items(self) -> Iterator[tuple[str, int, Any]]:
        if not self.path.endswith(".parquet"):
            yield from super()._items()
            return
        import pyarrow
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(Path(self.path).expanduser()).to_pylist()
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise UserError(f"task '{self.name}': cannot read '{self.path}' ({error})") from None
        for number, row in enumerate(rows, start=1):
            yield "row", number, _flat(row)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the reinforcement-learning files, as the supervised ones name it."""
    prompt = {turn.get("role"): turn.get("content") for turn in row.get("prompt") or ()}
    truth = (row.get("reward_model") or {}).get("ground_truth")
    found = {"instruction": prompt.get("system"), "input": prompt.get("user"), "output": truth}
    return {name: text for name, text in found.items() if text is not None}
