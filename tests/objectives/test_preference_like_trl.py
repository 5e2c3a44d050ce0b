"""The same loss and gradient as TRL's trainers, on the very batches that they make."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.objectives import build_objective
from posttrain.objectives.kahneman_tversky import REFERENCE_POINT
from posttrain.policy import Policy, Reference
from posttrain.training.ranks import Ranks
from posttrain.training.step import Stopwatch, accumulate_gradients, begin

pytest.importorskip("trl", reason="TRL is an extra")

# Prompts of one length, in order: TRL's answers for KTO's reference point are then ours.
ROWS = {
    "prompt": ["1 + 1 = ", "2 + 3 = ", "9 - 4 = ", "9 - 7 = "],
    "chosen": ["2", "5, of course", "5", "two"],
    "rejected": ["three", "6", "4 or so", "1"],
}


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture(scope="module")
def reference() -> Any:
    """Near the model, so that losses are neither 0 nor straight lines."""
    reference = build("llama")
    with torch.no_grad():
        for parameter in reference.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            parameter.add_(0.02 * noise)
    return reference


def trainer_of(kind: str, model: Any, folder: Path, reference: Any = None, **options: Any) -> Any:
    """One of TRL's trainers over `ROWS`, all of them in one batch."""
    from datasets import Dataset

    if kind in ("DPO", "KTO"):
        import trl as home
    else:
        home = __import__(f"trl.experimental.{kind.lower()}", fromlist=["_"])
    more = {"ref_model": reference} if reference is not None else {}
    arguments = getattr(home, f"{kind}Config")(
        output_dir=str(folder),
        per_device_train_batch_size=8 if kind == "KTO" else 4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        **options,
    )
    trainer = getattr(home, f"{kind}Trainer")
    return trainer(model, args=arguments, train_dataset=Dataset.from_dict(ROWS), processing_class=tokenizer(), **more)


def theirs(trainer: Any, model: Any) -> tuple[Mapping[str, Any], float, Tensor]:
    """Their batch, their loss on it and its gradient."""
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return batch, loss.item(), flat(gradients, model)


def flat(gradients: Any, model: Any) -> Tensor:
    pairs = zip(gradients, model.parameters(), strict=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in pairs])


def sequence(ids: Tensor, target: Tensor, keep: Tensor, chosen: bool, group: str) -> Sequence:
    tokens, target = ids[keep.bool()].numpy(), target[keep.bool()].bool().numpy()
    origin = np.where(target, Origin.DEMONSTRATION, Origin.PROMPT).astype(np.uint8)
    return Sequence(tokens.astype(np.int32), target, origin, group, group=group, scalars={"chosen": float(chosen)})


def pairs_of(batch: Mapping[str, Any]) -> list[Sequence]:
    """Our sequences of a batch of DPO's trainer (both sides in one tensor) or of CPO's and ORPO's (a tensor a side)."""
    sides = []
    if "completion_mask" in batch:
        names = ("input_ids", "completion_mask", "attention_mask")
        sides = list(zip(*(batch[name].chunk(2) for name in names), strict=True))
    else:
        for side in ("chosen", "rejected"):
            labels = batch[f"{side}_labels"]
            sides.append((batch[f"{side}_input_ids"], labels != -100, batch[f"{side}_attention_mask"]))
    return [
        sequence(*row, chosen=chosen, group=f"pair{number}")
        for side, chosen in zip(sides, (True, False), strict=True)
        for number, row in enumerate(zip(*side, strict=True))
    ]


def ours(spec: Any, model: Any, reference: Any, step: list[Sequence]) -> tuple[float, Tensor, dict[str, float]]:
    """The loss, gradient and metrics of a step."""
    policy = Policy(model, tokenizer())
    if reference is not None:
        policy.reference = Reference.of(Policy(reference, tokenizer()))
    model.zero_grad()
    watch = Stopwatch(torch.device("cpu"))
    begun = begin(0, 1, 0.0, 0, policy=policy, token_budget=10**6, ranks=Ranks())
    result = accumulate_gradients(policy, build_objective(spec), step, 10**6, begun, Ranks(), watch)
    gradient = flat([parameter.grad for parameter in model.parameters()], model)
    model.zero_grad()
    return result.loss, gradient, result.metrics


def assert_same(spec: Any, trainer: Any, model: Any, reference: Any = None) -> None:
    model.eval()
    batch, loss, gradient = theirs(trainer, model)
    value, found, _ = ours(spec, model, reference, pairs_of(batch))
    assert value == pytest.approx(loss, rel=1e-5, abs=1e-5)
    assert float((found - gradient).norm()) <= 1e-4 * float(gradient.norm())


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("dpo", {"loss_type": ["sigmoid"]}),
        ({"name": "dpo", "length_normalised": True, "beta": 2.0}, {"loss_type": ["sigmoid_norm"], "beta": 2.0}),
        ({"name": "robust_dpo", "label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
        ({"name": "ipo", "tau": 0.3}, {"loss_type": ["ipo"], "beta": 0.3}),
        ({"name": "slic", "beta": 0.05}, {"loss_type": ["hinge"], "beta": 0.05}),
        (
            ["dpo", {"name": "nll", "where": "chosen", "weight": 0.5}],
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        ),
    ],
    ids=["dpo", "dpo-length-normalised", "robust", "ipo", "slic", "dpo+nll"],
)
def test_losses_with_a_reference_are_those_of_trl(
    model: Any, reference: Any, tmp_path: Path, spec: Any, options: dict[str, Any]
) -> None:
    assert_same(spec, trainer_of("DPO", model, tmp_path, reference, **options), model, reference)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (["cpo", {"name": "nll", "where": "chosen"}], {}),
        ({"name": "cpo", "label_smoothing": 0.2}, {"label_smoothing": 0.2, "cpo_alpha": 0.0}),
        (
            {"name": "simpo", "gamma": 1.4},
            {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.4, "cpo_alpha": 0.0},
        ),
    ],
    ids=["cpo+nll", "conservative cpo", "simpo"],
)
def test_cpo_and_simpo_are_those_of_trl(model: Any, tmp_path: Path, spec: Any, options: dict[str, Any]) -> None:
    assert_same(spec, trainer_of("CPO", model, tmp_path, **options), model)


def test_orpo_is_that_of_trl_but_for_the_likelihood_of_the_prompt(model: Any, tmp_path: Path) -> None:
    """TRL's likelihood runs over the prompt too: taken off theirs here, and put back as that of the answer."""
    model.eval()
    trainer = trainer_of("ORPO", model, tmp_path, beta=0.4)
    batch, loss, gradient = theirs(trainer, model)
    step = pairs_of(batch)
    whole = [s for s in step if s.scalars["chosen"]]
    everything = [
        sequence(torch.from_numpy(s.tokens), torch.arange(len(s)) > 0, torch.ones(len(s)), True, s.group) for s in whole
    ]
    prompts_too, prompt_gradient, _ = ours("nll", model, None, everything)
    value, found, _ = ours({"name": "orpo", "beta": 0.4}, model, None, step)
    assert value + prompts_too == pytest.approx(loss, rel=1e-5)
    assert float((found + prompt_gradient - gradient).norm()) <= 1e-4 * float(gradient.norm())


def test_kto_is_that_of_trl_where_a_step_is_one_micro_batch(model: Any, reference: Any, tmp_path: Path) -> None:
    model.eval()
    options = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    trainer = trainer_of("KTO", model, tmp_path, reference, **options)
    batch, loss, gradient = theirs(trainer, model)
    names = ("input_ids", "completion_mask", "attention_mask", "label")
    rows = zip(*(batch[name] for name in names), strict=True)
    step = [sequence(*row, group=f"{number}") for number, row in enumerate(rows)]
    value, found, metrics = ours({"name": "kto", **options}, model, reference, step)
    assert trainer._metrics["eval"]["kl"][-1] == pytest.approx(metrics[REFERENCE_POINT], rel=1e-4)
    assert metrics[REFERENCE_POINT] > 0
    assert value == pytest.approx(loss, rel=1e-5)
    assert float((found - gradient).norm()) <= 1e-4 * float(gradient.norm())


def test_rewards_and_accuracy_in_the_log_are_those_of_trl(model: Any, reference: Any, tmp_path: Path) -> None:
    model.eval()
    trainer = trainer_of("DPO", model, tmp_path, reference)
    batch, _, _ = theirs(trainer, model)
    _, _, found = ours("dpo", model, reference, pairs_of(batch))
    expected = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    for our_name, their_name in (
        ("chosen_reward", "rewards/chosen"),
        ("rejected_reward", "rewards/rejected"),
        ("reward_margin", "rewards/margins"),
        ("reward_accuracy", "rewards/accuracies"),
    ):
        assert found[our_name] == pytest.approx(expected[their_name], rel=1e-4, abs=1e-5)
