"""Word problems from files that the user has: GSM8K (arXiv 2110.14168) and SVAMP (arXiv 2103.07191)."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError
from posttrain.rewards import Score
from posttrain.tasks.answers import plain_number, verify_number
from posttrain.tasks.generated import checked_style
from posttrain.tasks.task import Difficulty, tasks


@dataclass(frozen=True)
class Row:
    """One problem of a file. `solution`: the work that the file shows, in `steps` steps."""

    question: str
    solution: str
    answer: str
    steps: int


class FileTask(ABC):
    """A task whose problems are the rows of a file, read when samples are first asked for.

    Styles: "original" (the file's own solution, then `#### answer`) and "answer" (only the latter). Both difficulties
    give the same rows: the files do not grade them. `Sample.meta["steps"]` says how many steps a row takes.
    """

    name: str
    styles: tuple[str, ...] = ("original", "answer")
    fields: tuple[str, ...]

    def __init__(self, *, path: str) -> None:
        self.path = path

    @abstractmethod
    def row(self, fields: Mapping[str, Any]) -> Row:
        """Read one row that has all `fields`; raises `ValueError` saying what is wrong with it."""

    @cached_property
    def rows(self) -> list[tuple[Mapping[str, Any], Row]]:
        """Every row of the file with where it stands (`source`, and `line` or `item`).

        Raises `UserError` that names the file and the line.
        """
        rows: list[tuple[Mapping[str, Any], Row]]
        rows = [({"source": self.path, unit: n}, self._row(item, unit, n)) for unit, n, item in self._items()]
        if not rows:
            raise UserError(f"task '{self.name}': the file '{self.path}' is empty")
        return rows

    def samples(
        self, count: int, seed: int, *, difficulty: Difficulty = "in", style: str | None = None
    ) -> list[Sample]:
        """`count` rows drawn without replacement; all of them, in the seed's order, where the file has no more."""
        style = checked_style(self, count, difficulty, style)
        drawn = Random(f"{self.name} {seed}").sample(self.rows, min(count, len(self.rows)))
        return [self._sample(row, {"difficulty": difficulty, "style": style, **where}) for where, row in drawn]

    def verify(self, sample: Sample, answer: str) -> Score:
        """Score one answer as a number."""
        return verify_number(sample, answer)

    def _sample(self, row: Row, meta: Mapping[str, Any]) -> Sample:
        final = f"#### {row.answer}"
        response = f"{row.solution}\n{final}" if meta["style"] == "original" else final
        return Sample(
            prompt=(user(row.question),),
            response=(assistant(response),),
            answer=row.answer,
            task=self.name,
            meta={**meta, "steps": row.steps},
        )

    def _items(self) -> Iterator[tuple[str, int, Any]]:
        """("line", number, row) of a JSONL file, ("item", number, row) of a JSON list; numbers count from 1."""
        try:
            text = Path(self.path).expanduser().read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"task '{self.name}': '{self.path}' is not UTF-8 text ({error.reason})") from None
        except OSError as error:
            raise UserError(
                f"task '{self.name}': cannot read '{self.path}' ({error.strerror}); `path` wants a JSONL or JSON file"
            ) from None
        if text.lstrip().startswith("["):
            for number, item in enumerate(self._json(text, 1), start=1):
                yield "item", number, item
            return
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield "line", number, self._json(line, number)

    def _json(self, text: str, line: int) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            where = f"line {line + error.lineno - 1}, column {error.colno}"
            raise UserError(f"task '{self.name}': '{self.path}', {where} is not JSON: {error.msg}") from None

    def _row(self, item: Any, unit: str, number: int) -> Row:
        where = f"task '{self.name}': '{self.path}', {unit} {number}"
        if not isinstance(item, dict):
            raise UserError(f"{where} is no object; a row has {_listed(self.fields)}")
        for field in self.fields:
            if field not in item:
                raise UserError(
                    f"{where} has no field '{field}', only {_listed(item)}; a row has {_listed(self.fields)}"
                )
        try:
            return self.row(item)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None


@tasks.register("gsm8k")
class GSM8K(FileTask):
    """Grade-school word problems: JSONL rows of `question` and `answer`, which ends in `#### number`.

    `calculator_marks` keeps the `<<48/2=24>>` of the solutions.
    """

    name = "gsm8k"
    fields = ("question", "answer")

    def __init__(self, *, path: str, calculator_marks: bool = False) -> None:
        super().__init__(path=path)
        self.calculator_marks = calculator_marks

    def row(self, fields: Mapping[str, Any]) -> Row:
        """Split the solution from the final answer."""
        question, text = _text(fields, "question"), _text(fields, "answer")
        solution, mark, answer = text.partition("####")
        if not mark or plain_number(answer) is None:
            raise ValueError(f"'answer' should end in '#### number', but ends in {text[-40:]!r}")
        if not self.calculator_marks:
            solution = re.sub(r"<<[^<>]*>>", "", solution)
        solution = solution.strip()
        return Row(question, solution, answer.strip(), steps=len(solution.splitlines()))


@tasks.register("svamp")
class SVAMP(FileTask):
    """One- and two-step word problems: a JSON list (or JSONL) of `Body`, `Question`, `Equation` and `Answer`.

    The file has no worked solutions: the style "original" shows its equation before the answer.
    """

    name = "svamp"
    fields = ("Body", "Question", "Equation", "Answer")

    def row(self, fields: Mapping[str, Any]) -> Row:
        """Join body and question, and write whole numbers without their decimals."""
        body = _text(fields, "Body")
        stop = "." if body[-1].isalnum() else ""
        answer = _without_decimals(str(fields["Answer"]))
        if plain_number(answer) is None:
            raise ValueError(f"'Answer' should be a number, but is {fields['Answer']!r}")
        equation = _without_decimals(_text(fields, "Equation")).replace(" ", "")
        steps = len(re.findall(r"[-+*/]", equation))
        if equation.startswith("("):  # the whole is always in parentheses
            equation = equation[1:-1]
        return Row(f"{body}{stop} {_text(fields, 'Question')}", equation, answer, steps)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"'{name}' should be a text, but is {value!r}")
    return value.strip()


def _without_decimals(text: str) -> str:
    return re.sub(r"(\d)\.0+\b", r"\1", text)


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
