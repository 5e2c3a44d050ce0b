from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build, tokenizer
from steps import random_step
from torch import Tensor
from torch.nn import functional as F

from posttrain.data import Sequence
from posttrain.data.batch import collate
from posttrain.objectives import build_objective
from posttrain.policy import Policy

STEP = random_step(0, [30, 7, 1, 18])


def loss_and_gradient(model: Any, spec: Any, step: list[Sequence]) -> tuple[float, Tensor]:
    objective = build_objective(spec)
    model.zero_grad()
    batch = objective.attach(collate(step, pad_id=258), step, objective.coefficients(step))
    value = objective.loss(Policy(model, tokenizer()), batch).value
    value.backward()  # type: ignore[no-untyped-call]
    return value.item(), gradient(model)


def gradient(model: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def padded(step: list[Sequence]) -> dict[str, Tensor]:
    """Inputs, attention mask and labels as transformers takes them."""
    width = max(len(sequence) for sequence in step)
    ids, labels = torch.full((len(step), width), 258), torch.full((len(step), width), -100)
    mask = torch.zeros(len(step), width, dtype=torch.long)
    for row, sequence in enumerate(step):
        tokens = torch.from_numpy(sequence.tokens).long()
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = torch.where(torch.from_numpy(sequence.target), tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("name", ["llama", "gemma3_softcap", "gpt2"])
def test_nll_over_tokens_is_the_loss_of_transformers_itself(name: str) -> None:
    model = build(name)
    value, ours = loss_and_gradient(model, "nll", STEP)
    model.zero_grad()
    expected = model(**padded(STEP)).loss
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours, gradient(model), rtol=1e-4, atol=1e-6)


def flat_logits(model: Any, step: list[Sequence]) -> tuple[Tensor, Tensor]:
    inputs = padded(step)
    labels = inputs.pop("labels")[:, 1:]
    logits = model(**inputs).logits[:, :-1]
    return logits[labels != -100], labels[labels != -100]


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_label_smoothing_is_that_of_torch(smoothing: float) -> None:
    model = build("llama")
    value, ours = loss_and_gradient(model, {"name": "nll", "label_smoothing": smoothing}, STEP)
    model.zero_grad()
    expected = F.cross_entropy(*flat_logits(model, STEP), label_smoothing=smoothing)
    expected.backward()  # type: ignore[no-untyped-call]
    assert value == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours, gradient(model), rtol=1e-4, atol=1e-6)


def test_z_loss_is_the_square_of_the_log_partition() -> None:
    model = build("llama")
    value, ours = loss_and_gradient(model, {"name": "nll", "z_loss": 0.01}, STEP)
    model.zero_grad()
    logits, labels = flat_logits(model, STEP)
    expected = F.cross_entropy(logits, labels) + 0.01 * logits.exp().sum(-1).log().square().mean()
    expected.backward()  # type: ignore[no-untyped-call]
    assert value == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours, gradient(model), rtol=1e-4, atol=1e-6)


def test_nll_asks_for_nothing_but_log_probs_unless_an_option_needs_it() -> None:
    assert build_objective("nll").terms[0].needs == ()
    both = build_objective({"name": "nll", "label_smoothing": 0.1, "z_loss": 1e-4}).terms[0].needs
    assert [need.name for need in both] == ["mean_logprob", "log_partition"]


def test_the_first_loss_of_trl_is_ours(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is an extra")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    step = random_step(1, [30, 7, 18, 12])
    rows = [{"input_ids": s.tokens.tolist(), "completion_mask": s.target.astype(int).tolist()} for s in step]
    model = build("llama")
    value, _ = loss_and_gradient(model, "nll", step)
    settings = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        completion_only_loss=True,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(value, abs=1e-4)
