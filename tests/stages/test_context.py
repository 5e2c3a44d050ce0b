"""What stages share: which data are there, what an output depends on, how answers are compared."""

import json
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pytest
import running
from huggingface_hub import snapshot_download

from posttrain.data import Sample, assistant, user
from posttrain.data.readers import fingerprint
from posttrain.data.rendering import Rendering
from posttrain.errors import UserError
from posttrain.policy import load_tokenizer
from posttrain.recipe import check_recipe
from posttrain.run import plan
from posttrain.stages import Context
from posttrain.stages.encoded import encoded
from posttrain.tasks import tasks
from posttrain.terminal import Terminal
from posttrain.training.ranks import Ranks

GENERATE = {"kind": "generate", "data": "ask", "max_new_tokens": 4}
CHAINS = {"task": "chains", "count": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save_tiny(tmp_path_factory.mktemp("model"))


def context_of(folder: Path, model: object = "tiny", **content: Any) -> Context:
    recipe = {"name": "t", "out": str(folder / "run"), "model": str(model), "stages": {}, **content}
    return Context(check_recipe(recipe), Ranks(), Terminal(quiet=True))


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def question(text: str, answer: str) -> dict[str, Any]:
    return {"question": text, "answer": answer}


# --- data of stages that have not run ---


def test_stages_inside_a_mix_are_pending(tmp_path: Path) -> None:
    mix = {"mix": [CHAINS, {"mix": [{"stage": "gen"}], "repeat": 2}]}
    context = context_of(tmp_path, data={"ask": CHAINS, "mixed": mix}, stages={"gen": GENERATE})
    assert context.pending(context.data("mixed")) == {"gen"}
    assert context.pending(context.data("gen")) == {"gen"}
    assert context.pending(context.data("ask")) == set()


def test_a_mix_with_the_data_of_a_later_stage_is_refused(tmp_path: Path) -> None:
    data = {"ask": CHAINS, "mixed": {"mix": [CHAINS, {"stage": "gen"}]}}
    test = {"kind": "evaluate", "data": "mixed", "max_new_tokens": 4}
    context = context_of(tmp_path, data=data, stages={"test": test, "gen": GENERATE})
    with pytest.raises(UserError, match=r"stage 'test' reads 'gen', which runs only after it"):
        plan(context.recipe, context.terminal)


def test_a_model_of_a_later_stage_is_refused_also_where_data_have_its_name(tmp_path: Path) -> None:
    stages = {
        "test": {"kind": "evaluate", "model": "train", "data": "train", "max_new_tokens": 4},
        "train": {"kind": "train", "data": "train"},
    }
    context = context_of(tmp_path, data={"train": CHAINS}, stages=stages)
    with pytest.raises(UserError, match=r"stage 'test' reads 'train', which runs only after it"):
        plan(context.recipe, context.terminal)


def test_data_of_a_stage_that_writes_none_are_refused(tmp_path: Path) -> None:
    stages = {"gen": GENERATE, "clean": {"kind": "curate", "data": "mixed", "steps": ["deduplicate"]}}
    context = context_of(tmp_path, data={"ask": CHAINS, "mixed": {"mix": [{"stage": "gne"}]}}, stages=stages)
    with pytest.raises(UserError, match=r"'stage: gne' is written by no generate or curate stage.*gen"):
        plan(context.recipe, context.terminal)


def test_questions_in_a_mix_may_be_written_by_an_earlier_stage(tmp_path: Path, model: Path) -> None:
    data = {"ask": CHAINS, "mixed": {"mix": [CHAINS, {"stage": "gen"}]}}
    test = {"kind": "evaluate", "data": "mixed", "max_new_tokens": 4}
    context = context_of(tmp_path, model, data=data, stages={"gen": GENERATE, "test": test})
    assert plan(context.recipe, context.terminal)["test"].numbers == {"answers_each": 1}


def test_the_plan_of_a_curation_reads_its_data(tmp_path: Path) -> None:
    stages = {"clean": {"kind": "curate", "data": "own", "steps": ["deduplicate"]}}
    path = write(tmp_path / "own.jsonl", question("1+1?", "2"), question("1+2?", "3"))
    context = context_of(tmp_path, data={"own": path}, stages=stages)
    assert plan(context.recipe, context.terminal)["clean"].numbers["samples"] == 2
    (tmp_path / "own.jsonl").unlink()
    with pytest.raises(UserError, match=r"stage 'clean': no such file or folder: .*own\.jsonl"):
        plan(context.recipe, context.terminal)


# --- what an output depends on ---

TASK = """
from posttrain.data import Sample, assistant, user
from posttrain.rewards import Score
from posttrain.tasks import tasks

@tasks.register("echo_{n}")
class Echo:
    name = "echo_{n}"
    def samples(self, count, seed, *, difficulty="in", style=None):
        return [Sample((user(str(i)),), (assistant("{text}"),), answer=str(i), task=self.name) for i in range(count)]
    def verify(self, sample, answer):
        return Score(1.0)
"""
TRAIN = {"kind": "train", "data": "train"}


def stage_fingerprint(folder: Path, **content: Any) -> str:
    return context_of(folder, **content).stage_fingerprint("sft")


def test_the_file_that_a_task_reads_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    data = {"train": {"task": {"name": "gsm8k", "path": str(path)}, "count": 2}}
    context = context_of(tmp_path, data=data, stages={"sft": TRAIN})

    def fingerprints(context: Context) -> tuple[str, str]:
        return context.data_fingerprint(context.data("train")), context.stage_fingerprint("sft")

    write(path, question("1+1?", "2 #### 2"), question("1+2?", "3 #### 3"))
    first = fingerprints(context)
    assert first == fingerprints(context) == fingerprints(context_of(tmp_path, data=data, stages={"sft": TRAIN}))
    write(path, question("1+1?", "2 #### 2"), question("1+2+3?", "6 #### 6"))
    assert set(first).isdisjoint(fingerprints(context)), "the same context sees that the file has changed"


def test_the_samples_of_a_task_are_part_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo.py").write_text(TASK.format(n=1, text="yes"))
    imports, data = [str(tmp_path / "echo.py")], {"train": {"task": "echo_1", "count": 2}}
    context = context_of(tmp_path, data=data, imports=imports)
    before = context.data_fingerprint(context.data("train"))
    monkeypatch.setattr(tasks["echo_1"], "samples", lambda *a, **k: [Sample((user("another"),), answer="1")])
    again = context_of(tmp_path, data=data, imports=imports)
    assert again.data_fingerprint(again.data("train")) != before


def test_random_weights_are_other_weights_with_another_seed_and_pretrained_ones_are_not(
    model: Path, tmp_path: Path
) -> None:
    """What runs keep for each other, such as a reference's log-probs, is named by the fingerprint."""

    def fingerprint_of(seed: int, weights: str) -> str:
        models = {"other": {"path": str(model), "weights": weights}}
        return context_of(tmp_path, model, models=models, seed=seed).model_fingerprint("other")

    assert fingerprint_of(1, "random") == fingerprint_of(1, "random") != fingerprint_of(2, "random")
    assert fingerprint_of(1, "pretrained") == fingerprint_of(2, "pretrained")


def test_a_hub_model_is_named_by_the_commit_of_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.policy.loading.snapshot_download", partial(snapshot_download, cache_dir=tmp_path))
    stored = tmp_path / "models--owner--name"
    (stored / "refs").mkdir(parents=True)

    def fetched(commit: str) -> str:
        (stored / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (stored / "refs" / "main").write_text(commit)
        return context_of(tmp_path, "owner/name").model_fingerprint("base")

    unknown = context_of(tmp_path, "owner/name").model_fingerprint("base")
    first, second = fetched("aaa"), fetched("bbb")
    assert len({unknown, first, second}) == 3
    assert fetched("aaa") == first


WATCH = {"data": "train", "every": 5}
SERVED: dict[str, Any] = {"server": {"url": "http://127.0.0.1:1/v1", "model": "m", "sync": "none"}}


@pytest.mark.parametrize(
    ("fields", "key", "decides"),
    [
        ({}, "log_every", False),
        ({}, "batch_size", True),
        ({"rollouts": {}}, "rollouts.slots", False),
        ({"rollouts": {}}, "rollouts.n", True),
        ({"rollouts": SERVED}, "rollouts.server.concurrency", False),
        ({"watch": WATCH}, "watch.slots", False),
        ({"watch": WATCH}, "watch.count", True),
        ({"template_options": {}}, "template_options.slots", True),
    ],
)
def test_fields_that_change_no_result_are_no_part_of_the_fingerprint_wherever_they_stand(
    tmp_path: Path, fields: dict[str, Any], key: str, decides: bool
) -> None:
    """What a piece calls 'slots' is its own option, and may well decide."""

    def of(value: int) -> str:
        stage = json.loads(json.dumps({**TRAIN, **fields}))
        *above, last = key.split(".")
        reduce(dict.__getitem__, above, stage)[last] = value
        return stage_fingerprint(tmp_path, data={"train": CHAINS}, stages={"sft": stage})

    assert (of(3) != of(4)) == decides


def test_an_imported_module_is_part_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_pieces_of_a_test.py"
    module.write_text("ONE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    content = {"data": {"train": CHAINS}, "stages": {"sft": TRAIN}, "imports": ["own_pieces_of_a_test"]}
    before = stage_fingerprint(tmp_path, **content)
    module.write_text("ONE = 11\n")
    assert stage_fingerprint(tmp_path, **content) != before


def test_tokens_follow_what_a_task_makes_and_what_a_stage_wrote(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echo.py").write_text(TASK.format(n=2, text="yes"))
    data = {"train": {"mix": [{"task": "echo_2", "count": 2}, {"stage": "gen"}]}, "ask": CHAINS}
    context = context_of(tmp_path, data=data, imports=[str(tmp_path / "echo.py")], stages={"gen": GENERATE})
    tokenizer, written = load_tokenizer(str(model)), tmp_path / "run" / "data" / "gen.jsonl"
    written.parent.mkdir(parents=True)

    def rows() -> int:
        return encoded(context, "train", tokenizer, Rendering(512)).report.rows

    row = {"prompt": [user("a")], "response": [assistant("b")]}
    write(written, row)
    assert rows() == rows() == 3
    write(written, row, row)
    assert rows() == 4
    monkeypatch.setattr(tasks["echo_2"], "samples", lambda *a, **k: [])
    context = context_of(tmp_path, data=data, imports=[str(tmp_path / "echo.py")], stages={"gen": GENERATE})
    assert rows() == 2


def test_files_are_hashed_and_samples_made_once(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "own.jsonl", question("1+1?", "2"), question("1+2?", "3"))
    data = {"train": {"mix": [path, CHAINS]}}
    context = context_of(tmp_path, model, data=data, stages={"sft": TRAIN})
    hashed = []
    monkeypatch.setattr("posttrain.stages.context.file_fingerprint", lambda p, **k: hashed.append(p) or fingerprint(p))
    first = encoded(context, "train", load_tokenizer(str(model)), Rendering(512))
    context.stage_fingerprint("sft")
    monkeypatch.setattr(context, "samples", None)  # stored tokens need no samples
    assert encoded(context, "train", load_tokenizer(str(model)), Rendering(512)).folder == first.folder
    assert hashed == [path]


# --- models ---


def test_a_stage_s_model_is_held_like_the_one_it_was_trained_from(tmp_path: Path) -> None:
    models = {"big": {"path": "tiny", "dtype": "bfloat16", "attention": "eager", "weights": "random"}}
    stages = {
        "sft": {**TRAIN, "init_from": "big"},
        "more": {**TRAIN, "init_from": "sft"},
        "merged": {"kind": "merge", "models": ["more", "other"]},
        "other": TRAIN,
    }
    context = context_of(tmp_path, data={"train": CHAINS}, models=models, stages=stages)
    for name in ("sft", "more", "merged"):
        model = context.model(name)
        assert (model.dtype, model.attention, model.weights) == ("bfloat16", "eager", "pretrained")
        assert model.path == str(tmp_path / "run" / "models" / name)
        assert context.origin(name) == context.model("big")
    assert context.model("other").dtype == context.model("base").dtype == "float32"


def test_a_stage_that_goes_back_to_no_model_is_refused(tmp_path: Path) -> None:
    stages = {"gen": GENERATE, "sft": {**TRAIN, "init_from": "gen"}, "loop": {**TRAIN, "init_from": "loop"}}
    context = context_of(tmp_path, data={"train": CHAINS, "ask": CHAINS}, stages=stages)
    with pytest.raises(UserError, match="model 'gen' is neither 'base', nor in models, nor a train or merge stage"):
        context.origin("sft")
    with pytest.raises(UserError, match="'loop' starts from its own output"):
        context.model("loop")


# --- how answers are compared ---


def test_the_way_of_comparing_goes_with_a_sample_through_generated_and_curated_data(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", question("the capital of France?", "#### Paris"))
    data = {"own": {"path": path, "verify": "exact"}, "same": {"path": path, "verify": "number"}, "plain": path}
    context = context_of(tmp_path, data=data, stages={"gen": {**GENERATE, "data": "own"}})
    (sample,) = context.samples(context.data("own"))
    (tmp_path / "run" / "data").mkdir(parents=True)
    write(tmp_path / "run" / "data" / "gen.jsonl", sample.to_json())
    (again,) = context.samples(context.data("gen"))
    assert again.id == sample.id
    for asked in (sample, again):
        assert context.verify(asked, "<answer>Paris</answer>").value == 1
        assert context.verify(asked, "<answer>London</answer>").value == 0
    for name in ("same", "plain"):
        (number,) = context.samples(context.data(name))
        assert context.verify(number, "<answer>Paris</answer>").value != 1, "two data sets of one file, two ways"
