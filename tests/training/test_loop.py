"""The loop: resuming at every step, stopping early, clipping, schedules, and how little it depends on cutting."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import DATA, same, small_loop, tiny_policy, trained
from running import largest_difference, metrics

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.sources import Demonstrations
from posttrain.training.loop import EarlyStopping, Interrupted, Loop, gradient_norm, train
from posttrain.training.optimisers import OPTIMISERS


def interrupted(folder: Path, after: int, **options: object) -> None:
    with pytest.raises(Interrupted):
        train(small_loop(folder, stop_after=after, **options))  # type: ignore[arg-type]


def full() -> Policy:
    return tiny_policy()


def lora() -> Policy:
    return tiny_policy(dropout=0.5)


@pytest.mark.parametrize("policy", [full, lora])
def test_a_run_cut_off_after_any_step_ends_like_one_that_was_not(policy: Callable[[], Policy], tmp_path: Path) -> None:
    whole = small_loop(tmp_path / "whole", policy=policy())
    expected = train(whole)
    for steps in range(7):
        folder = tmp_path / f"cut-{steps}"
        interrupted(folder, steps, policy=policy())
        resumed = small_loop(folder, policy=policy())
        progress = train(resumed)
        assert same(trained(resumed), trained(whole)), f"cut off after {steps} steps"
        assert metrics(folder) == metrics(tmp_path / "whole")
        assert (progress.step, progress.tokens) == (expected.step, expected.tokens)


def test_what_was_done_after_the_last_checkpoint_is_done_and_written_again(tmp_path: Path) -> None:
    def crash(step: int, row: dict[str, float]) -> None:
        if step == 6:
            raise RuntimeError("power cut")

    whole = small_loop(tmp_path / "whole", checkpoint_every=3)
    train(whole)
    with pytest.raises(RuntimeError, match="power cut"):
        train(replace(small_loop(tmp_path / "cut", checkpoint_every=3), show=crash))
    assert [row["step"] for row in metrics(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    resumed = small_loop(tmp_path / "cut", checkpoint_every=3)
    train(resumed)
    assert same(trained(resumed), trained(whole))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_goes_on_as_if_not_cut_off(optimiser: str, tmp_path: Path) -> None:
    whole = small_loop(tmp_path / "whole", optimiser=optimiser, steps=4)
    train(whole)
    interrupted(tmp_path / "cut", 2, optimiser=optimiser, steps=4)
    resumed = small_loop(tmp_path / "cut", optimiser=optimiser, steps=4)
    train(resumed)
    assert same(trained(resumed), trained(whole))


def test_a_run_cut_off_at_the_edge_of_an_epoch_still_trains_what_is_left(tmp_path: Path) -> None:
    steps_of_an_epoch = len(DATA) // 2  # ten rows, two at a time through five steps, in batches of four: 2 epochs
    interrupted(tmp_path, steps_of_an_epoch)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert train(small_loop(tmp_path)).step == 7
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_finished_stage_that_is_run_again_trains_nothing_and_has_the_same_weights(tmp_path: Path) -> None:
    first = small_loop(tmp_path)
    train(first)
    again = small_loop(tmp_path)
    assert train(again).step == 7
    assert same(trained(again), trained(first))
    assert len(metrics(tmp_path)) == 7


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    train(small_loop(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000007"]


def test_without_checkpoints_only_an_interruption_writes_one(tmp_path: Path) -> None:
    train(small_loop(tmp_path / "whole", checkpoint_every=None))
    assert not (tmp_path / "whole" / "checkpoints").exists()
    interrupted(tmp_path / "cut", 3, checkpoint_every=None)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000003"]


def scores_of(*values: float) -> Callable[[int], dict[str, float]]:
    """An evaluation that gives these values at steps 0, 1, 2 ..."""
    return lambda step: {"accuracy": values[step]}


RULE = {"evaluate_every": 1, "early_stopping": EarlyStopping("accuracy", patience=2)}


def test_it_stops_when_the_metric_no_longer_improves_and_keeps_the_best_weights(tmp_path: Path) -> None:
    reached: dict[int, dict[str, torch.Tensor]] = {}
    loop = small_loop(tmp_path, settings=RULE, evaluate=scores_of(0.1, 0.2, 0.5, 0.4, 0.5, 0.9, 0.9, 0.9))
    loop = replace(loop, show=lambda step, row: reached.setdefault(step, trained(loop)))
    progress = train(loop)
    assert (progress.step, progress.best_step, progress.best) == (4, 2, 0.5)
    assert same(trained(loop), reached[2])
    assert not same(reached[4], reached[2])


def test_a_metric_may_be_better_when_smaller(tmp_path: Path) -> None:
    rule = {"evaluate_every": 1, "early_stopping": EarlyStopping("accuracy", patience=2, larger_is_better=False)}
    loop = small_loop(tmp_path, settings=rule, evaluate=scores_of(0.5, 0.3, 0.4, 0.35, 0.1))
    assert train(loop).best_step == 1


def test_what_could_not_be_measured_is_never_the_best(tmp_path: Path) -> None:
    nan = float("nan")
    progress = train(small_loop(tmp_path, settings=RULE, evaluate=scores_of(nan, 0.5, nan, 0.4)))
    assert (progress.step, progress.best_step, progress.best) == (3, 1, 0.5)


@pytest.mark.parametrize("cut", range(5))
def test_early_stopping_goes_on_as_if_not_cut_off(cut: int, tmp_path: Path) -> None:
    values = (0.1, 0.2, 0.5, 0.4, 0.6, 0.5, 0.5, 0.9)
    whole = small_loop(tmp_path / "whole", settings=RULE, evaluate=scores_of(*values))
    expected = train(whole)
    interrupted(tmp_path / "cut", cut, settings=RULE, evaluate=scores_of(*values))
    resumed = small_loop(tmp_path / "cut", settings=RULE, evaluate=scores_of(*values))
    progress = train(resumed)
    assert (progress.step, progress.best_step) == (expected.step, expected.best_step) == (6, 4)
    assert same(trained(resumed), trained(whole))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_best_weights_that_are_gone_are_no_reason_to_save_others(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, settings=RULE, evaluate=scores_of(0.5, 0.1, 0.1))
    assert loop.best is not None
    loop = Loop(**{**vars(loop), "show": lambda step, row: loop.best.keep_only(99)})  # type: ignore[union-attr]
    with pytest.raises(UserError, match="best weights, of step 0, are no longer"):
        train(loop)


def test_a_metric_that_is_not_measured_is_refused_before_the_first_step(tmp_path: Path) -> None:
    rule = {"evaluate_every": 1, "early_stopping": EarlyStopping("acuracy")}
    with pytest.raises(UserError, match="'acuracy' is not measured; measured: accuracy"):
        train(small_loop(tmp_path, settings=rule, evaluate=scores_of(0.0)))
    assert [row["kind"] for row in metrics(tmp_path)] == ["evaluation"]


@pytest.mark.parametrize(("optimiser", "tolerance"), [("sgd", 1e-6), ("adamw", 1e-5)])
def test_weights_do_not_depend_on_how_steps_are_cut(optimiser: str, tolerance: float, tmp_path: Path) -> None:
    """AdamW divides by the size of a gradient, and so gives rounding errors of small ones the size of a step."""
    loops = {n: small_loop(tmp_path / str(n), steps=5, token_budget=n, optimiser=optimiser) for n in (1, 40, 10**6)}
    for loop in loops.values():
        train(loop)
    parts = {budget: [row["micro_batches"] for row in metrics(tmp_path / str(budget))] for budget in loops}
    assert (parts[1], parts[10**6]) == ([4] * 5, [1] * 5)
    one, some, whole = (trained(loop) for loop in loops.values())
    assert largest_difference(one, whole) < tolerance
    assert largest_difference(some, whole) < tolerance


def test_clipping_is_that_of_torch(tmp_path: Path) -> None:
    """With plain gradient descent at rate 1 the update is the clipped gradient."""
    clipped, plain = (
        small_loop(tmp_path, steps=1, optimiser="sgd", learning_rate=lambda step: 1.0, settings={"gradient_clip": clip})
        for clip in (0.25, None)
    )
    before = trained(plain)
    for loop in (clipped, plain):
        for group in loop.optimiser.param_groups:
            group.update(weight_decay=0.0, momentum=0.0)
        train(replace(loop, checkpoints=None))
    parameters = [torch.nn.Parameter(before[name]) for name in before]
    for parameter, after in zip(parameters, trained(plain).values(), strict=True):
        parameter.grad = parameter.detach() - after
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.25)
    assert norm > 0.25
    assert metrics(tmp_path)[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    for parameter, after in zip(parameters, trained(clipped).values(), strict=True):
        torch.testing.assert_close(parameter.detach() - after, parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_gradient_norm_below_the_limit_is_left_alone(tmp_path: Path) -> None:
    loose, off = (small_loop(tmp_path / str(c), steps=2, settings={"gradient_clip": c}) for c in (1e9, None))
    train(loose)
    train(off)
    assert same(trained(loose), trained(off))


def test_the_norm_of_no_gradients_is_0() -> None:
    assert gradient_norm([torch.nn.Parameter(torch.ones(3))]) == 0


def test_every_step_has_the_rate_of_its_schedule(tmp_path: Path) -> None:
    train(small_loop(tmp_path, steps=3, learning_rate=lambda step: 0.5 - 0.1 * step))
    assert [row["lr"] for row in metrics(tmp_path)] == pytest.approx([0.5, 0.4, 0.3])


def test_parameter_groups_may_have_factors_of_the_rate(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, steps=1)
    loop.optimiser.param_groups[0]["lr_factor"] = 0.0
    before = trained(loop)
    train(loop)
    moved = {name for name, after in trained(loop).items() if not torch.equal(after, before[name])}
    assert moved == {name for name in before if before[name].ndim < 2}


def test_a_step_without_a_trained_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a single trained token"):
        train(small_loop(tmp_path, objective=build_objective({"name": "nll", "origins": ["hint"]})))


def test_metrics_are_written_as_often_as_asked_for_and_at_the_end(tmp_path: Path) -> None:
    train(small_loop(tmp_path, settings={"log_every": 3}))
    assert [row["step"] for row in metrics(tmp_path)] == [3, 6, 7]
    row = metrics(tmp_path)[0]
    assert row["stage"] == "sft"
    assert row["kind"] == "train"
    assert {"loss", "nll", "lr", "grad_norm", "tokens", "input_tokens", "sequences", "micro_batches"} <= row.keys()


class Measuring(Demonstrations):
    """A source that measures something at every other step, as rollouts do that last for two."""

    def next(self, step: Step) -> list[Sequence]:
        if step.index % 2 == 0:
            step.report["reward"] = (float(step.index), 1.0)
        return super().next(step)


def test_what_a_source_measures_between_two_rows_is_in_the_next_one(tmp_path: Path) -> None:
    def measuring(folder: Path, **options: Any) -> Loop:
        loop = small_loop(folder, settings={"log_every": 4}, **options)
        return replace(loop, source=Measuring(DATA, 4, seed=0, epochs=2.8))

    train(measuring(tmp_path / "whole"))
    rows = metrics(tmp_path / "whole")
    assert [(row["step"], row["reward"]) for row in rows] == [(4, (0 + 2) / 2), (7, (4 + 6) / 2)]
    with pytest.raises(Interrupted):
        train(measuring(tmp_path / "cut", stop_after=3))
    train(measuring(tmp_path / "cut"))
    assert metrics(tmp_path / "cut") == rows


def test_the_global_random_stream_before_the_run_changes_nothing(tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        train(small_loop(tmp_path / str(seed), steps=3, policy=lora()))
    assert metrics(tmp_path / "1") == metrics(tmp_path / "2")
