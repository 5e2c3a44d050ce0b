"""The page is looked at in a browser by hand; here: it is made from whatever is there, and says what it should."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from html_page import Page

from posttrain.comparison.page import write_page
from posttrain.comparison.result import ArmRun, BudgetResult, ComparisonResult, from_json, write_result
from posttrain.errors import UserError


@pytest.fixture(scope="module")
def example() -> ComparisonResult:
    return from_json(json.loads(Path(__file__).with_name("example.json").read_text(encoding="utf-8")))


def page(result: ComparisonResult, folder: Path) -> Page:
    write_result(result, folder)
    path = write_page(folder)
    assert path == folder / "comparison.html"
    assert {each.name for each in folder.iterdir()} == {"comparison.html", "comparison.json"}
    return Page(path)


def without(result: ComparisonResult, *arms: str) -> ComparisonResult:
    """The result as it would be if these arms had never finished a run; with "base": without the start."""
    return replace(
        result,
        arms=[arm for arm in result.arms if arm.name not in arms],
        base=None if "base" in arms else result.base,
        estimates=[one for one in result.estimates if one.arm not in arms],
        contrasts=[one for one in result.contrasts if not {one.arm, one.minus} & set(arms)],
    )


def test_the_page_has_every_arm_measure_and_section(example: ComparisonResult, tmp_path: Path) -> None:
    made = page(example, tmp_path)
    for said in ("In distribution", "Longer problems", "Kept from before", "KL to the start", "Entropy", "Time"):
        assert said in made.text
    for section in ("Claims", "Arms", "Differences", "Quality against cost", "Learning curves", "Tuning", "Statistics"):
        assert section in made.text
    for measure in example.measures:
        assert measure.label in made.text
        assert measure.name in made.text
    assert example.command in made.text
    assert all(version in made.text for version in example.versions.values())
    assert len(re.findall(r'<svg class="plane"', made.source)) == 3


def test_the_page_loads_nothing_from_anywhere(example: ComparisonResult, tmp_path: Path) -> None:
    made = page(example, tmp_path)
    assert made.references
    assert all(reference.startswith("#") for reference in made.references)
    assert "http" not in re.sub(r"<style>.*?</style>", "", made.source, flags=re.S).lower()
    assert "url(" not in made.source


def test_every_seed_of_every_measure_is_on_the_page(example: ComparisonResult, tmp_path: Path) -> None:
    text = page(example, tmp_path).text
    for arm in example.arms:
        seeds = " · ".join(f"{100 * run.values['longer.accuracy']:.1f} %" for run in arm.runs)
        assert seeds in text


def test_only_significant_differences_are_marked_and_told(example: ComparisonResult, tmp_path: Path) -> None:
    text = page(example, tmp_path).text
    sure = [one for one in example.contrasts_of("longer.accuracy") if one.significant]
    assert sure
    for one in sure:
        assert f"{one.arm} +{100 * one.estimate:.1f} points (+{100 * one.low:.1f} to" in text.partition("Claims")[0]
    nothing = replace(example, contrasts=[replace(one, significant=False) for one in example.contrasts])
    made = page(nothing, tmp_path)
    assert "No significant difference from sft: dft, asft." in made.text
    assert '<span class="sign">' not in made.source
    assert 'class="interval s2 sure"' not in made.source


def test_green_is_better_even_where_less_is_better(example: ComparisonResult, tmp_path: Path) -> None:
    slower = [replace(one, significant=one.metric == "train.seconds") for one in example.contrasts]
    source = page(replace(example, contrasts=slower), tmp_path).source
    assert '<b class="failed">' in source
    faster = [replace(one, estimate=-one.estimate) for one in slower]
    assert '<b class="failed">' not in page(replace(example, contrasts=faster), tmp_path).source


def test_what_all_arms_were_given_alike_is_not_said_of_each(example: ComparisonResult, tmp_path: Path) -> None:
    arms = [replace(arm, set={"batch_size": 48, "lr": index}) for index, arm in enumerate(example.arms)]
    text = page(replace(example, arms=arms), tmp_path).text
    assert "sft lr=1" in text
    assert "batch_size" not in text


def test_changes_of_an_arm_are_said_as_on_the_command_line(example: ComparisonResult, tmp_path: Path) -> None:
    first, *others = example.arms
    schedule = {"name": "cosine", "start": 0.9}
    made = page(replace(example, arms=[replace(first, set={"imitation": schedule}), *others]), tmp_path)
    assert "imitation={name: cosine, start: 0.9}" in made.text


def test_a_verdict_is_said_once(example: ComparisonResult, tmp_path: Path) -> None:
    claim = replace(example.claims[0], text="it is better", verdict="supported", sentence="supported: by 3 points")
    assert "supported it is better by 3 points" in page(replace(example, claims=[claim]), tmp_path).text


def test_intervals_of_shares_end_at_zero_and_one(example: ComparisonResult, tmp_path: Path) -> None:
    wide = [replace(one, low=-0.27, high=1.87) if one.metric == "test.accuracy" else one for one in example.estimates]
    made = page(replace(example, estimates=wide), tmp_path)
    assert "0.0 to 100.0" in made.text
    assert "to 187.0" not in made.text
    assert "150 %" not in made.text


def test_failed_runs_are_named_with_their_reason(example: ComparisonResult, tmp_path: Path) -> None:
    made = page(example, tmp_path)
    assert "1 run did not finish" in made.text
    assert "otr , seed 0: exit code 1" in made.text
    assert "loss of step 12 is not finite" in made.text


def test_tuning_shows_what_was_tried_and_chosen(example: ComparisonResult, tmp_path: Path) -> None:
    text = page(example, tmp_path).text
    chosen = next(trial for trial in example.trials if trial.chosen)
    other = next(trial for trial in example.trials if not trial.chosen)
    assert f"{chosen.value:.4g} ✓" in text
    assert f"{other.value:.4g} ✓" not in text
    assert "validation.accuracy" in text


@pytest.mark.parametrize("missing", [("base",), ("asft",), ("sft",), ("dft", "asft"), ("sft", "dft", "asft", "base")])
def test_arms_may_be_missing(example: ComparisonResult, tmp_path: Path, missing: tuple[str, ...]) -> None:
    made = page(without(example, *missing), tmp_path)
    assert "How the statistics were made" in made.text
    assert ("Quality against cost" in made.text) == (len(set(missing) - {"base"}) < 2)


def test_an_arm_may_lack_a_measure_and_its_curves(example: ComparisonResult, tmp_path: Path) -> None:
    def bare(run: ArmRun) -> ArmRun:
        values = {name: value for name, value in run.values.items() if not name.startswith("kept")}
        return replace(run, values=values, curves={}, watched={})

    poor = replace(example.arms[1], runs=[bare(run) for run in example.arms[1].runs[:1]])
    lacking = without(example, "dft")
    kept = [one for one in example.estimates if one.arm == "dft" and not one.metric.startswith("kept")]
    result = replace(lacking, arms=[example.arms[0], poor, example.arms[2]], estimates=lacking.estimates + kept)
    made = page(result, tmp_path)
    assert "1 of 3 seeds" in made.text
    figures = re.findall(r'<svg class="curve".*?</svg>', made.source, flags=re.S)
    assert figures
    assert not any("line s2" in figure for figure in figures), "the others keep their colours"
    assert any("line s3" in figure for figure in figures)


def test_one_seed_is_said_to_be_one_seed(example: ComparisonResult, tmp_path: Path) -> None:
    unsure = [replace(one, low=None, high=None, effect=None, significant=False) for one in example.contrasts]
    result = replace(example, seeds=[0], contrasts=unsure)
    text = page(result, tmp_path).text
    assert "There is one seed" in text
    assert "No significant difference" not in text, "nothing is known of it"


def test_names_are_text_and_never_markup(example: ComparisonResult, tmp_path: Path) -> None:
    script = "<script>alert(1)</script>"
    changed = json.loads(json.dumps(example.to_json()).replace('"dft"', json.dumps(script)))
    made = page(replace(from_json(changed), name=script, description=script, command=script), tmp_path)
    assert script not in made.source
    assert script in made.text


@pytest.mark.parametrize(("kind", "axis"), [("steps", "step 150"), ("tokens", "input tokens"), ("seconds", "seconds")])
def test_curves_are_drawn_over_what_all_arms_had_the_same_of(
    example: ComparisonResult, tmp_path: Path, kind: str, axis: str
) -> None:
    budget = BudgetResult(kind, 150.0)  # type: ignore[arg-type]
    curves = re.findall(r'<svg class="curve"[^>]*', page(replace(example, budget=budget), tmp_path).source)
    assert axis in curves[0]


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"comparison\.json"):
        write_page(tmp_path)
