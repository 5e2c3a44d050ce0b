"""FOLIO (arXiv 2209.00840): sentences that people wrote, with the first-order formulas that logicians gave them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from posttrain.data import Sample, assistant, user
from posttrain.rewards import Score
from posttrain.rewards.smt import Comparison, formula_text, score_comparison, score_formula
from posttrain.tasks.answers import answered
from posttrain.tasks.files import FileTask, Row
from posttrain.tasks.first_order import FirstOrder, read_formula
from posttrain.tasks.task import tasks


@dataclass(frozen=True)
class Premise(Row):
    """A sentence with its formula as it was read."""

    formula: FirstOrder


@tasks.register("folio")
class Folio(FileTask):
    """Write a premise of FOLIO as a first-order formula: JSONL rows of `premises` and `premises-FOL`.

    The prompt names the predicates and constants of the right formula, in alphabetical order: they are of the
    annotators' making, and no reader could guess them. Right is every formula over them that is equivalent, half right
    one that says more or less (`rewards.smt`). Sentences that come again are read once; `passed_over` counts premises
    whose own formula cannot be read, or that are not as many as the formulas. Style: "direct" (the formula alone).
    """

    name = "folio"
    styles = ("direct",)
    fields = ("premises", "premises-FOL")
    passed_over = 0

    @cached_property
    def rows(self) -> list[tuple[Mapping[str, Any], Row]]:
        """Every premise once, with its story's line."""
        found: dict[str, tuple[Mapping[str, Any], Row]] = {}
        refused: set[str] = set()
        for unit, number, item in self._items():
            self._row(item, unit, number)
            sentences = [" ".join(sentence.split()) for sentence in item["premises"]]
            if len(sentences) != len(item["premises-FOL"]):
                refused |= set(sentences)
                continue
            for sentence, formula in zip(sentences, item["premises-FOL"], strict=True):
                try:
                    row = Premise(sentence, formula.strip(), formula.strip(), 1, read_formula(formula))
                except ValueError:
                    refused.add(sentence)
                    continue
                found.setdefault(sentence, ({"source": self.path, unit: number}, row))
        self.passed_over = len(refused - found.keys())
        return list(found.values())

    def row(self, fields: Mapping[str, Any]) -> Row:
        """A story; raises `ValueError` where its premises or formulas are no lists of texts."""
        for name in self.fields:
            if not isinstance(fields[name], list) or not all(isinstance(text, str) for text in fields[name]):
                raise ValueError(f"'{name}' should be a list of texts, but is {fields[name]!r:.60}")
        return Row("", "", "", 0)

    def verify(self, sample: Sample, answer: str) -> Score:
        """See `rewards.smt`; the formula is read as FOLIO writes it."""
        written = formula_text(answer)
        gold = read_formula(sample.answer or "")
        try:
            term = read_formula(written).term
        except (ValueError, RecursionError) as error:
            return score_comparison(Comparison("malformed" if written else "missing", str(error)), written)
        return score_formula(term, gold.term, gold.declarations(), written)

    def _sample(self, row: Row, meta: Mapping[str, Any]) -> Sample:
        assert isinstance(row, Premise)
        return Sample(
            prompt=(user(f"Formalise: {row.question}\nNames: {row.formula.vocabulary()}"),),
            response=(assistant(answered(row.answer)),),
            answer=row.answer,
            task=self.name,
            meta=meta,
        )
