"""First-step logical reasoning (sheet 11): one planning step of each worked solution, its result kept out."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import tokenizer
from torch import Tensor

from posttrain.curation import curations
from posttrain.curation.first_step import plan
from posttrain.curation.worked_steps import WorkedStep, worked_steps
from posttrain.data import Sample, Sequence, assistant, user
from posttrain.data.batch import Batch, collate
from posttrain.data.readers import read_samples
from posttrain.data.rendering import Rendering, render
from posttrain.data.scores import TokenScores
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.tasks.chains import Chains
from posttrain.tasks.word_problems import WordProblems

CLIPS = Sample(
    (user("Natalia sold clips to 48 friends in April and half as many in May. How many altogether?"),),
    (assistant("Natalia sold 48/2=<<48/2=24>>24 clips in May.\nThat makes 48+24=<<48+24=72>>72 clips.\n#### 72"),),
    answer="72",
)


def reduced(samples: list[Sample], seed: int = 0, **options: Any) -> list[Sample]:
    kind, checked = curations.options({"name": "first_step", **options})
    return list(curations[kind](samples, seed, **checked))


def response(sample: Sample, **options: Any) -> str:
    (found,) = reduced([sample], **options)
    return found.response_text


def solved(solution: str) -> Sample:
    return Sample((user("How many?"),), (assistant(solution),), answer="1")


# --- the sheet's checks ---


class Fixed:
    """A policy that says these log-probs of the target tokens."""

    def __init__(self, logprobs: list[float]) -> None:
        self.logprobs = torch.tensor(logprobs, requires_grad=True)

    def scores(self, batch: Batch, needs: Any = ()) -> TokenScores:
        return TokenScores(self.logprobs)


def loss(logprobs: list[float], reduction: Any) -> tuple[float, Tensor]:
    target = np.arange(3 + len(logprobs)) >= 3
    rows = [Sequence(np.arange(len(target), dtype=np.int32), target, target.astype(np.uint8), "a")]
    objective, policy = build_objective({"name": "nll", "reduction": reduction}), Fixed(logprobs)
    value = objective.loss(policy, objective.attach(collate(rows), rows, objective.coefficients(rows))).value
    value.backward()  # type: ignore[no-untyped-call]
    assert policy.logprobs.grad is not None
    return float(value.detach()), policy.logprobs.grad


def test_the_losses_of_a_chain_and_of_its_first_step() -> None:
    steps = [[-0.5, -1.5], [-0.1, -0.1, -0.2], [-0.05, -0.05, -0.1]]
    chain, first = [value for step in steps for value in step], steps[0]
    total = {"constant": 1.0}
    assert loss(chain, total)[0] == pytest.approx(2.6)
    assert loss(chain, "tokens")[0] == pytest.approx(0.325)
    assert loss(first, total)[0] == pytest.approx(2.0)
    assert loss(first, "tokens")[0] == pytest.approx(1.0)
    assert loss(chain, total)[0] - loss(first, total)[0] == pytest.approx(0.6)
    assert 1 - len(first) / len(chain) == 0.75
    assert torch.equal(loss(chain, total)[1][:2], loss(first, total)[1])  # and no gradient through the later ones


def test_later_steps_are_neither_read_nor_trained() -> None:
    sample = Sample((user("abc"),), (assistant("<<1+2=3>>\n<<3*4567=13701>>\n<<1+1=2>>"),))
    (found,) = reduced([sample], form="expression", instruction="")
    sequence = render(found, tokenizer(), Rendering(99, template="none"))
    assert isinstance(sequence, Sequence)
    assert sequence.target.tolist() == [False] * 3 + [True] * 4  # three bytes of the step, and the end
    assert found.response_text == "1+2"


def test_a_step_names_quantities_and_operation_and_keeps_the_value_out() -> None:
    first, second = worked_steps(CLIPS.response_text, "marks")
    assert first == WorkedStep(("48", "2"), ("divide",), "48/2", "24")
    assert second == WorkedStep(("48", "24"), ("add",), "48+24", "72")
    assert response(CLIPS) == "use 48 friends and 2; operation divide"
    assert response(CLIPS, linked=False) == "use 48 and 2; operation divide"
    assert response(CLIPS, form="expression") == "48/2"
    assert response(CLIPS, form="plan_expression", linked=False) == "use 48 and 2; operation divide: 48/2"


def test_a_one_step_solution_gives_the_same_step_whichever_is_asked_for() -> None:
    sample = solved("<<6*7=42>>42")
    assert len({response(sample, step=step) for step in ("first", "random", "last")}) == 1


def test_a_solution_without_a_step_is_left_out_and_counted_and_never_guessed() -> None:
    told = [solved("She has half of 48, so 24."), solved("First she sold 48/2 = 24 clips.")]
    rows = [CLIPS, *told]
    assert [row.meta["source_id"] for row in reduced(rows, max_refused=0.7)] == [CLIPS.id]
    with pytest.raises(UserError, match=r"2 of 3 solutions \(66\.7%\) show no step.*allowed are 5\.0%") as error:
        reduced(rows)
    assert all(row.id in str(error.value) for row in told)
    assert "Try reading: equations" in str(error.value)


# --- real solutions ---

FIRST_OF_GSM8K = [
    "use 48 and 2; operation divide",
    "use 12 and 60; operation divide",
    "use 100 and 2; operation divide",
    "use 12 pages and 2; operation multiply",
]


def test_first_steps_of_real_solutions(shared_data: Path) -> None:
    rows = list(read_samples(str(shared_data / "gsm8k" / "train.jsonl")))
    kept = reduced(rows)
    assert [row.response_text for row in kept[:4]] == FIRST_OF_GSM8K
    assert (len(rows), len(kept)) == (7473, 7286)
    assert kept[0].prompt_text.startswith(rows[0].prompt_text + "\nGive only the first step")
    assert all("=" not in row.response_text and row.answer is None for row in kept)


def test_equations_of_real_solutions_agree_with_their_marks(shared_data: Path) -> None:
    agree = both = 0
    for row in islice(read_samples(str(shared_data / "gsm8k" / "test.jsonl")), 500):
        marks = worked_steps(row.response_text, "marks")
        bare = row.response_text.replace(">>", "<<").split("<<")
        equations = worked_steps("".join(bare[::2]), "equations")
        both += bool(marks and equations)
        agree += bool(marks and equations) and marks[0].operands == equations[0].operands
    assert both > 200
    assert agree / both > 0.9  # the authors of the data calculate in words where a mark calculates


# --- reading ---


@pytest.mark.parametrize(
    ("text", "operands", "operations"),
    [
        ("<<(5+3)*2=16>>", ("5", "3", "2"), ("add", "multiply")),
        ("<<16-3-4=9>>", ("16", "3", "4"), ("subtract", "subtract")),
        ("<<-4 * .5=-2>>", ("-4", ".5"), ("multiply",)),
        ("<<3*-2=-6>>", ("3", "-2"), ("multiply",)),
        ("<<3--4=7>>", ("3", "-4"), ("subtract",)),
        ("<<1,000÷4=250>>", ("1,000", "4"), ("divide",)),
        ("<<5=5>> then <<5+1=6>>", ("5", "1"), ("add",)),
    ],
)
def test_marks_are_read_as_they_are_written(text: str, operands: tuple[str, ...], operations: tuple[str, ...]) -> None:
    step = worked_steps(text, "marks")[0]
    assert (step.operands, step.operations) == (operands, operations)


@pytest.mark.parametrize("text", ["<<3+=4>>", "<<x+2=4>>", "<<3 4=7>>", "<<*3=4>>", "<<=>>", "<<3=3>>"])
def test_what_is_no_calculation_is_no_step(text: str) -> None:
    assert worked_steps(text, "marks") == []


@pytest.mark.parametrize(
    "text", ["2x=8, so 8/2=4", "9 hours * 2/3 = 6 hours, 6+1=7", "a = 3+4 = 7", "the first is 2=2", "no number"]
)
def test_a_solution_with_an_equation_that_cannot_be_read_gives_none(text: str) -> None:
    assert worked_steps(text, "equations") == []


@pytest.mark.parametrize("style", ["steps", "prose"])
@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_every_step_of_the_generated_tasks_is_read(style: str, difficulty: Any) -> None:
    for sample in WordProblems().samples(200, 1, style=style, difficulty=difficulty):
        steps = worked_steps(sample.response_text, "equations")
        assert [f"{step.expression}={step.value}" for step in steps] == list(sample.meta["steps"])
    for sample in Chains().samples(200, 1, style=style, difficulty=difficulty):
        assert len(worked_steps(sample.response_text, "equations")) == sample.meta["steps"]


# --- the new samples ---


def test_controls_show_the_steps_before_with_their_results() -> None:
    (last,) = reduced([CLIPS], step="last", form="expression", instruction="Next?")
    assert last.prompt_text.splitlines()[1:] == ["48/2=24", "Next?"]
    assert last.response_text == "48+24"
    assert (last.meta["step"], last.meta["steps"]) == (2, 2)


def test_random_steps_are_spread_and_do_not_depend_on_the_order() -> None:
    rows = WordProblems().samples(300, 1, difficulty="harder")
    drawn = reduced(rows, reading="equations", step="random")
    share = np.mean([row.meta["step"] == 1 for row in drawn])
    assert share == pytest.approx(np.mean([1 / row.meta["steps"] for row in drawn]), abs=0.06)
    again = reduced(rows[::-1], reading="equations", step="random")
    assert {row.id for row in again} == {row.id for row in drawn}
    assert {row.id for row in reduced(rows, 1, reading="equations", step="random")} != {row.id for row in drawn}


def test_the_question_asks_for_one_step_in_another_way_than_for_a_solution() -> None:
    ((first,), (later,)) = (reduced([CLIPS], step=step) for step in ("first", "last"))
    assert (
        first.prompt_text
        == f"{CLIPS.prompt_text}\nGive only the first step: which quantities to use, and which operation."
    )
    assert "next step" in later.prompt_text
    assert first.prompt_id != CLIPS.prompt_id


def test_a_response_may_be_written_in_a_form_of_its_own() -> None:
    assert response(CLIPS, form="expression", written="<plan>{step}</plan>") == "<plan>48/2</plan>"
    with pytest.raises(UserError, match=r"'<plan>' has no place for the \{step\}"):
        reduced([CLIPS], written="<plan>")


def test_numbers_take_along_the_words_behind_them_only_where_they_are_one_and_named_once() -> None:
    step = WorkedStep(("3", "1200", "7"), ("multiply", "add"), "3*1200+7", "3607")
    question = "There are 3 red boxes of 1,200 nuts, 7 of these and 7 of those."
    assert plan(step, question) == "use 3 red boxes, 1200 nuts and 7; operations multiply, add"
    assert plan(WorkedStep(("2", "2"), ("divide",), "2/2", "1"), "It takes 2 bolts.") == "use 2 and 2; operation divide"
