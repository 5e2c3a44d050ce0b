import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import UserError
from posttrain.tasks.files import GSM8K, SVAMP, FileTask
from posttrain.tasks.task import tasks

QUESTION = {
    "question": "Weng earns $12 an hour. How much for 50 minutes?",
    "answer": "That is 12/60 = $<<12/60=0.2>>0.2 a minute.\nSo 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
}
PUPILS = {
    "Body": "In a school there are 458 more girls than boys. If there are 692 girls",
    "Question": "How many pupils are there?",
    "Equation": "( ( 692.0 + 692.0 ) - 458.0 )",
    "Answer": 926.0,
}


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def gsm8k(tmp_path: Path) -> GSM8K:
    rows = [{**QUESTION, "question": f"{QUESTION['question']} ({n})"} for n in range(20)]
    return GSM8K(path=write_lines(tmp_path / "train.jsonl", rows))


def test_gsm8k_shows_the_solution_without_calculator_marks(gsm8k: GSM8K) -> None:
    sample = gsm8k.samples(1, 0)[0]
    assert sample.response_text == "That is 12/60 = $0.2 a minute.\nSo 0.2 x 50 = $10.\n#### 10"
    assert (sample.answer, sample.task, sample.meta["steps"]) == ("10", "gsm8k", 2)
    assert gsm8k.samples(1, 0, style="answer")[0].response_text == "#### 10"


def test_gsm8k_keeps_the_calculator_marks_on_request(tmp_path: Path) -> None:
    task = GSM8K(path=write_lines(tmp_path / "a.jsonl", [QUESTION]), calculator_marks=True)
    assert task.samples(1, 0)[0].response_text == QUESTION["answer"]


def test_svamp_joins_body_and_question_and_shows_the_equation(tmp_path: Path) -> None:
    path = tmp_path / "svamp.json"
    path.write_text(json.dumps([PUPILS]), encoding="utf-8")
    sample = SVAMP(path=str(path)).samples(1, 0)[0]
    assert sample.prompt_text.endswith("If there are 692 girls. How many pupils are there?")
    assert sample.response_text == "(692+692)-458\n#### 926"
    assert (sample.meta["item"], sample.meta["source"], sample.meta["steps"]) == (1, str(path), 2)


def test_rows_are_drawn_by_seed_without_replacement(gsm8k: GSM8K) -> None:
    drawn = [sample.meta["line"] for sample in gsm8k.samples(10, 0)]
    assert len(set(drawn)) == 10
    assert drawn == [sample.meta["line"] for sample in gsm8k.samples(10, 0, style="answer", difficulty="harder")]
    assert drawn != [sample.meta["line"] for sample in gsm8k.samples(10, 1)]


def test_more_samples_than_rows_gives_every_row_once(gsm8k: GSM8K) -> None:
    assert sorted(sample.meta["line"] for sample in gsm8k.samples(1000, 0)) == list(range(1, 21))


@pytest.mark.parametrize(("text", "value"), [("#### 10", 1), ("<answer>$10.00</answer>", 1), ("#### 12", 0), ("10", 0)])
def test_answers_are_verified_as_numbers(gsm8k: GSM8K, text: str, value: int) -> None:
    assert gsm8k.verify(gsm8k.samples(1, 0)[0], text).value == value


def test_the_file_is_read_only_when_samples_are_asked_for() -> None:
    task = GSM8K(path="nowhere.jsonl")
    with pytest.raises(UserError, match=r"task 'gsm8k': cannot read 'nowhere.jsonl' \(No such file"):
        task.samples(1, 0)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (GSM8K, "", "is empty"),
        (GSM8K, json.dumps(QUESTION) + "\n{oops\n", "line 2, column 2 is not JSON"),
        (GSM8K, "\n\n3\n", "line 3 is no object"),
        (GSM8K, '{"question": "Q"}', "line 1 has no field 'answer', only 'question'; a row has 'question', 'answer'"),
        (GSM8K, '{"question": "Q", "answer": "12"}', r"line 1: 'answer' should end in '#### number'.* '12'"),
        (GSM8K, '{"question": 5, "answer": "#### 1"}', "line 1: 'question' should be a text, but is 5"),
        (GSM8K, '{"question": " ", "answer": "#### 1"}', "'question' should be a text"),
        (SVAMP, json.dumps([PUPILS, {**PUPILS, "Answer": "many"}]), "item 2: 'Answer' should be a number"),
        (SVAMP, '[\n{"Body": 1},\n{oops}]', "line 3, column 2 is not JSON"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(
    tmp_path: Path, kind: type[FileTask], text: str, message: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        kind(path=str(path)).samples(1, 0)
    assert str(path) in str(caught.value)


def test_a_folder_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        GSM8K(path=str(tmp_path)).samples(1, 0)
    binary = tmp_path / "data.parquet"
    binary.write_bytes(b"PAR1\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        GSM8K(path=str(binary)).samples(1, 0)


def test_recipes_must_say_where_the_file_is() -> None:
    with pytest.raises(UserError, match="task 'gsm8k': option 'path' is missing"):
        tasks.options("gsm8k")


def test_every_row_of_the_real_files_is_read_and_verifies(shared_data: Path) -> None:
    expected = {"gsm8k/train.jsonl": 7473, "gsm8k/test.jsonl": 1319, "svamp/svamp.json": 1000}
    for file, count in expected.items():
        task: FileTask = (SVAMP if "svamp" in file else GSM8K)(path=str(shared_data / file))
        samples = task.samples(10**6, 0)
        assert len(samples) == count
        assert all(task.verify(sample, sample.response_text).value == 1 for sample in samples[:1000])


def test_the_real_equations_keep_their_value(shared_data: Path) -> None:
    path = shared_data / "svamp" / "svamp.json"
    originals = [row["Equation"] for row in json.loads(path.read_text(encoding="utf-8"))]
    for sample in SVAMP(path=str(path)).samples(1000, 0):
        assert eval(sample.response_text.split("\n")[0]) == pytest.approx(eval(originals[sample.meta["item"] - 1]))
