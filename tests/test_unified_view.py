"""The tables of docs/unified-view.md against the numbers of sheet 52 (checks 5, 8 and its table of weights)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from posttrain.objectives import objectives

SCRIPT = Path(__file__).parents[1] / "scripts" / "unified_view.py"


@pytest.fixture(scope="module")
def view() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unified_view", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["unified_view"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("nll", [1, 1, 1, 1]),
        ("dft", [0.01, 0.1, 0.5, 0.9]),
        ("chord_phi", [0.0099, 0.09, 0.25, 0.09]),
        ("luffy", [0.082645, 0.25, 0.138889, 0.09]),
        ({"name": "luffy", "gamma": 0.0}, [0.01, 0.1, 0.5, 0.9]),  # plain importance weights
        ({"name": "iw_sft", "ratio": "token", "clip": [0, 16]}, [0.02, 0.2, 1.0, 1.8]),
    ],
)
def test_weights_of_demonstrated_tokens(view: ModuleType, loss: Any, expected: list[float]) -> None:
    assert view.of_demonstrations(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["ppo", "grpo", "cispo", "gspo", "reinforce", "luffy"])
def test_where_the_ratio_is_1_every_policy_gradient_has_the_advantage_for_a_weight(view: ModuleType, name: str) -> None:
    at = view.RATIOS.index(1.0)
    assert [view.of_own_answers(name, a)[at] for a in (1.0, -1.0, 0.5)] == pytest.approx([1.0, -1.0, 0.5])


def test_a_clipped_token_weighs_nothing_and_any_other_its_ratio(view: ModuleType) -> None:
    assert view.RATIOS == (0.5, 1.0, 1.1, 1.25, 4.0)
    assert view.of_own_answers("ppo", 1.0) == pytest.approx([0.5, 1, 1.1, 0, 0])
    assert view.of_own_answers("ppo", -1.0) == pytest.approx([0, -1, -1.1, -1.25, -4])
    assert view.of_own_answers({"name": "ppo", "dual_clip": 3.0}, -1.0)[-1] == pytest.approx(0)
    assert view.of_own_answers({"name": "ppo", "clip_high": 0.28}, 1.0)[3] == pytest.approx(1.25)
    assert view.of_own_answers("cispo", 1.0) == pytest.approx(view.RATIOS)


def test_dpo_pulls_both_answers_alike_and_half_of_beta_at_first(view: ModuleType) -> None:
    assert view.of_pairs("dpo", 0.0) == pytest.approx((0.05, -0.05))
    assert view.of_pairs("dpo", -10.0) == pytest.approx((0.0731059, -0.0731059))
    assert view.of_pairs("ipo", 5.0) == pytest.approx((0, 0), abs=1e-9)  # its target, 1 / (2 tau)


def test_every_loss_has_its_row(view: ModuleType) -> None:
    page = view.page()
    shown = {row.split("`")[1].split(",")[0] for row in page.splitlines() if row.startswith("| `")}
    house = {name for name in objectives if objectives[name].__module__.startswith("posttrain.")}
    assert house <= shown
