import errno
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import architectures
import pytest
import yaml
from html_page import Page

from posttrain import catalogue
from posttrain.chat import Conversation
from posttrain.cli import main
from posttrain.data import Sample, user
from posttrain.data.rendering import Rendering, render_prompt
from posttrain.generation import Prompt, Sampling
from posttrain.generation.local import LocalEngine
from posttrain.policy import Policy
from posttrain.training.loop import Interrupted


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    architectures.build("qwen3").save_pretrained(folder)
    architectures.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, saved_model):
    """A working folder with a model, questions, and a recipe that trains on them between two evaluations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(saved_model)
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(6)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"kind": "evaluate", "data": "own", "max_new_tokens": 4}
    stages = {
        "before": {**asked, "model": "base"},
        "sft": {"kind": "train", "data": "own", "batch_size": 3, "epochs": 1},
        "after": {**asked, "model": "sft"},
    }
    recipe = {"name": "small", "model": "model", "data": {"own": "own.jsonl"}, "stages": stages}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


@pytest.fixture
def call(capsys):
    """Run a command: its exit code, and what it wrote."""

    def called(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=end.value.code, out=out, err=err)

    return called


def rows(result):
    return [json.loads(line) for line in result.out.splitlines()]


def row(result, event):
    (found,) = [row for row in rows(result) if row.get("event") == event]
    return found


# --- lists ------------------------------------------------------------------------------------------------------------


def test_help_lists_and_recipe_errors_need_no_torch():
    script = """
import sys
from posttrain.cli import main
for arguments in (["--help"], ["recipes"], ["methods"], ["run", "sft", "lrr=1"], ["inspect", "nothing"]):
    try:
        main(arguments)
    except SystemExit:
        pass
heavy = {"torch", "transformers", "scipy", "datasets"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_methods_list_every_paper_with_the_state_of_its_claim(call, place):
    (place / "claims").mkdir()
    claim = {"paper": 36, "claims": [{"verdict": "supported"}]}
    (place / "claims" / f"{catalogue.paper(36).key}.json").write_text(json.dumps(claim))
    found = rows(call("methods", "--json"))
    assert [paper["number"] for paper in found] == [paper.number for paper in catalogue.papers()]
    assert {"title", "arxiv", "family", "pieces", "recipe", "claim"} < found[0].keys()
    assert {paper["number"]: paper["claim"] for paper in found}[36] == "supported"


def test_recipes_list_their_stages(call):
    found = {recipe["name"]: recipe for recipe in rows(call("recipes"))}
    stages = found["sft"]["stages"]
    assert stages["train"] == "train"
    assert {stages[name] for name in ("before", "test", "longer", "kept")} == {"evaluate"}


def test_tables_are_for_people_and_json_lines_for_programs(call, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "description" in call("recipes").out.splitlines()[0]
    assert {"name", "description"} < rows(call("recipes", "--json"))[0].keys()


# --- run --------------------------------------------------------------------------------------------------------------


def test_a_run_prints_its_plan_its_stages_and_what_the_evaluations_came_to(call, place):
    result = call("run", "small.yaml")
    assert result.code == 0
    assert [found["event"] for found in rows(result)] == ["plan", *["stage"] * 3, *["result"] * 2, "finished"]
    plan = row(result, "plan")["stages"]
    assert (plan["sft"]["steps"], plan["sft"]["samples"], plan["before"]["answers"]) == (2, 6, 6)
    before, after = (found for found in rows(result) if found["event"] == "result")
    assert (before["stage"], before["model"], before["problems"]) == ("before", "base", 6)
    assert "change" not in before
    assert after["compared_with"] == "before"
    assert after["change"] == pytest.approx(after["accuracy"] - before["accuracy"])
    assert "between before and after" in after["sentence"]
    assert Path(row(result, "finished")["report"]).is_file()
    assert result.err == ""

    again = call("run", "small.yaml")
    assert [found["event"] for found in rows(again)].count("skipped") == 3
    assert [found for found in rows(again) if found["event"] == "result"] == [before, after]


def test_a_person_sees_a_table_and_a_sentence(call, place, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    seen = re.sub("\x1b\\[[0-9;]*m", "", call("run", "small.yaml", "data.own.count=3").out)
    assert "rows 3, samples 3, steps 1" in seen
    table = seen[seen.index("stage ") :]
    assert "accuracy" in table.splitlines()[0]
    assert "0.0\u202f% (0.0 to 56.1)" in table
    assert "no significant difference between before and after" in table
    assert "report: runs/small/report.html" in table


def test_quiet_prints_nothing_but_errors(call, place):
    result = call("run", "small.yaml", "--quiet", "data.own.count=2")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert "did you mean 'lr'" in call("run", "small.yaml", "--quiet", "lrr=3").err


def test_a_dry_run_checks_everything_and_leaves_no_run(call, place):
    result = call("run", "small.yaml", "--dry-run")
    assert (result.code, [found["event"] for found in rows(result)]) == (0, ["plan"])
    assert not (place / "runs" / "small").exists()


def test_a_run_folder_of_another_recipe_is_refused_also_by_a_dry_run(call, place):
    call("run", "small.yaml", "--quiet")
    for more in ([], ["--dry-run"]):
        result = call("run", "small.yaml", "lr=0.5", *more)
        assert result.code == 2
        assert "stages.sft.lr: default there, 0.5 here" in result.err
        assert "resume=false" in result.err
    call("run", "small.yaml", "lr=0.5", "resume=false", "--dry-run")
    assert not (place / "runs" / "small.old-1").exists()
    assert call("run", "small.yaml", "lr=0.5", "resume=false", "--quiet").code == 0
    assert (place / "runs" / "small.old-1" / "manifest.json").is_file()


def test_a_first_try_that_failed_early_does_not_block_its_folder(call, place):
    shutil.copytree("model", "damaged")
    Path("damaged/model.safetensors").write_bytes(b"nothing")
    failed = call("run", "small.yaml", "model=damaged")
    assert (failed.code, "'damaged' cannot be loaded" in failed.err) == (2, True)
    assert json.loads(Path("runs/small/manifest.json").read_text())["status"] == "failed"
    assert call("run", "small.yaml", "--quiet").code == 0


BROKEN = '{"question": "a", "answer": "b"}\n{"question": \n'


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective=nlll"], "stage 'sft': unknown objective 'nlll': did you mean 'nll'?"),
        (["objective.name=nll", "objective.label_smothing=1"], "did you mean 'label_smoothing'?"),
        (["adapter=lroa"], "unknown adapter 'lroa': did you mean 'lora'?"),
        (["adapter.name=lora", "adapter.rnak=4"], "unknown option 'rnak' of adapter 'lora': did you mean 'rank'?"),
        (["adapter.name=lora", "adapter.targets=[nothing]"], "fits no layer"),
        (["init_from=bsae"], "did you mean 'base'?"),
        (["sft.data=onw"], "did you mean 'own'?"),
        (["optimizer=adamww"], "did you mean 'adamw'?"),
        (["trackers=[wandbb]"], "did you mean 'wandb'?"),
        (["max_length=9999"], "the model reads at most 512 tokens"),
        (["max_length=9"], "raise max_length"),
        (["overlong=error", "max_length=30"], "own.jsonl, row 1"),
        (["max_new_tokens=600"], "lower max_new_tokens"),
        (["sft.watch.data=own", "sft.watch.every=1", "sft.watch.max_new_tokens=600"], "lower max_new_tokens"),
        (["model.attention=nonsense"], "cannot be built"),
        (["model=notemplate"], "template: none"),
        (["model=unmarked"], "does not write the content of an assistant's turn"),
        (["model=noweights"], "has no weights"),
        (["model=noconfig"], "has no config.json"),
        (["model=nothing"], "no such folder"),
        (["data.own=owm.jsonl"], "did you mean 'own.jsonl'?"),
        (["data.own=data/own.jsonl"], "no such file"),
        (["data.own=empty.jsonl"], "empty.jsonl has no rows"),
        (["data.own=broken.jsonl"], "broken.jsonl, line 2: broken JSON"),
        (["data.own=columns.jsonl"], "line 2 (read as shape 'question_answer'): column 'answer' is missing"),
        (["data.own=half.jsonl"], "1 of 2 samples have no 'answer' to score against"),
        (["out=own.jsonl"], "is a file"),
        (["out=own.jsonl/mine"], "cannot be written, "),
        (["out=."], "is not empty and holds no run"),
        (["sft.init_from=before"], "nor a train or merge stage"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_computed(call, bad_place, overrides, said):
    result = call("run", "small.yaml", "--dry-run", *overrides)
    assert said in result.err
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


@pytest.fixture
def bad_place(place):
    """The working folder with everything in it that can be wrong."""
    (place / "empty.jsonl").write_text("\n")
    (place / "broken.jsonl").write_text(BROKEN)
    (place / "columns.jsonl").write_text(BROKEN.replace('"question": \n', '"question": "c"}\n'))
    half = '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d", "answer": "1"}\n'
    (place / "half.jsonl").write_text(half)
    for name in ("notemplate", "unmarked", "noweights", "noconfig"):
        shutil.copytree("model", name)
    Path("noweights/model.safetensors").unlink()
    Path("noconfig/config.json").unlink()
    Path("notemplate/chat_template.jinja").unlink()
    Path("unmarked/chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] | upper }}\n{% endfor %}")
    return place


def test_a_loss_that_is_not_finite_ends_the_run_with_one_message(call, place):
    result = call("run", "small.yaml", "lr=1e30", "steps=4", "warmup=0")
    assert result.code == 1
    assert "is not finite" in result.err
    assert "--debug" not in result.err


@pytest.mark.parametrize(("error", "said"), [(Interrupted(), "saved"), (KeyboardInterrupt(), "stopped at once")])
def test_an_interrupted_run_says_how_to_go_on(call, place, monkeypatch, error, said):
    def interrupted(*_):
        raise error

    monkeypatch.setattr("posttrain.run.run", interrupted)
    result = call("run", "small.yaml")
    assert (result.code, row(result, "interrupted")["saved"]) == (130, said)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert f"{said}; run the same command again to go on" in call("run", "small.yaml").out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ZeroDivisionError("a\nb"), 1, "ZeroDivisionError: a\nb\n(run with --debug for the traceback)"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full"),
        (RuntimeError("CUDA out of memory."), 1, "lower micro_batch_tokens"),
    ],
)
def test_other_failures_have_a_short_message_and_a_traceback_only_with_debug(call, monkeypatch, error, code, said):
    def fails():
        raise error

    monkeypatch.setattr(catalogue, "papers", fails)
    result = call("methods")
    assert result.code == code
    assert said in result.err
    assert "Traceback" not in result.err
    for arguments in (["--debug", "methods"], ["methods", "--debug"]):
        with pytest.raises(type(error)):
            main(arguments)


# --- eval, chat, report -----------------------------------------------------------------------------------------------


def test_eval_asks_a_file_and_finds_what_it_measured_before(call, place):
    ask = ("eval", "model", "--data", "own.jsonl", "--max-new-tokens", 3)
    first = call(*ask)
    assert (row(first, "result")["model"], row(first, "result")["data"]) == ("model", "own")
    assert [found["event"] for found in rows(call(*ask))] == ["plan", "skipped", "result", "finished"]
    other = call(*ask, "--n", 2, "--temperature", 1)
    assert row(other, "plan")["stages"]["evaluate"]["answers"] == 12
    assert row(other, "finished")["out"] != row(first, "finished")["out"]


def test_eval_asks_problems_of_a_task_that_no_recipe_trains_on(call, place):
    result = call("eval", "model", "--task", "chains", "--count", 2, "--max-new-tokens", 2, "--out", "here")
    assert result.code == 0
    recipe = yaml.safe_load((place / "here" / "recipe.yaml").read_text())
    assert recipe["data"]["chains"]["task"]["part"] == "test"
    assert "did you mean 'chains'" in call("eval", "model", "--task", "chians").err
    assert "did you mean 'part'" in call("eval", "model", "--task", "chains", "--option", "prt=x").err


def test_piped_questions_are_answered_with_what_was_said_before(call, place, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nand then?\n/new\nhello\n/quit\nunheard\n"))
    answers = rows(call("chat", "model", "--max-new-tokens", 6))
    assert [answer["question"] for answer in answers] == ["hello", "and then?", "hello"]
    assert answers[0]["answer"] == answers[2]["answer"] != answers[1]["answer"]


def test_an_answer_in_pieces_is_the_answer_of_the_engine(saved_model):
    policy = Policy.load(str(saved_model))
    sampling = Sampling(max_new_tokens=24, temperature=1.0, seed=5)
    conversation = Conversation(policy, sampling, system="be brief")
    pieces = list(conversation.ask("What is 1 + 1?"))
    assert len(pieces) > 3
    turns = ({"role": "system", "content": "be brief"}, user("What is 1 + 1?"))
    prompt = render_prompt(Sample(turns), policy.tokenizer, Rendering(512))
    sampling = Sampling(max_new_tokens=24, temperature=0.0)
    conversation = Conversation(policy, sampling, system="be brief")
    (expected,) = LocalEngine(policy.model, policy.tokenizer).generate([Prompt(prompt)], 1, sampling)
    assert "".join(conversation.ask("What is 1 + 1?")) == expected.text
    assert conversation.finish_reason == expected.finish_reason
    assert conversation.turns[-1] == {"role": "assistant", "content": expected.text}


def test_a_conversation_longer_than_the_context_is_refused_and_forgets_nothing(saved_model):
    conversation = Conversation(Policy.load(str(saved_model)), Sampling(max_new_tokens=2, temperature=0.0))
    with pytest.raises(Exception, match="/new starts over"):
        list(conversation.ask("x" * 600))
    assert conversation.turns == []


def test_report_writes_the_page_again(call, place):
    call("run", "small.yaml", "--quiet")
    (place / "runs" / "small" / "report.html").unlink()
    result = call("report", "runs/small")
    assert result.code == 0
    assert "95 % intervals" in Page(Path(row(result, "report")["report"])).text
    assert "not a run directory" in call("report", "model").err


def test_the_version_is_printed(call):
    assert re.fullmatch(r"\d+\.\d+\.\d+", call("--version").out.strip())
