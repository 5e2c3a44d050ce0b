"""A saved model runs in lm-eval (an extra) as it is, on a task of local files."""

import json

import pytest
import yaml

from posttrain.policy import model_path
from posttrain.tasks.chains import Chains

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'posttrain[lm-eval]'")


def test_a_model_folder_is_scored_by_lm_eval_on_a_local_task(tmp_path):
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": sample.prompt_text, "answer": sample.answer} for sample in Chains(part="test").samples(8, seed=0)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "local_chains",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<|im_end|>"], "max_gen_toks": 64, "do_sample": False},
        "filter_list": [
            {
                "name": "answer",
                "filter": [
                    {"function": "regex", "regex_pattern": "<answer>(.*?)</answer>"},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "local_chains.yaml").write_text(yaml.safe_dump(task))

    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model_path("tiny"), "dtype": "float32"},
        tasks=["local_chains"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        batch_size=8,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert found["n-samples"]["local_chains"]["effective"] == len(rows)
    assert 0.0 <= found["results"]["local_chains"]["exact_match,answer"] <= 1.0
    replies = [sample["resps"][0][0] for sample in found["samples"]["local_chains"]]
    assert any("<answer>" in reply for reply in replies)
