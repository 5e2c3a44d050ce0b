"""The plots of a comparison: where things are drawn, and that the same result gives the same picture."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.comparison.claim_figure import WIDTH, claim_figure
from posttrain.comparison.figures import Point, Whisker, frontier, plane, shortened, span, whisker
from posttrain.comparison.measures import measure
from posttrain.comparison.panels import charts
from posttrain.comparison.result import ComparisonResult, from_json
from posttrain.comparison.wording import difference_text, value_text

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.fixture(scope="module")
def example() -> ComparisonResult:
    return from_json(json.loads(Path(__file__).with_name("example.json").read_text(encoding="utf-8")))


def point(label: str, x: float, y: float) -> Point:
    return Point(label, 1, x, y, y - 0.1, y + 0.1)


def test_the_frontier_is_what_no_other_arm_beats_in_both() -> None:
    cheap, good, beaten, same = (
        point("cheap", 1, 0.3),
        point("good", 3, 0.6),
        point("beaten", 4, 0.5),
        point("s", 3, 0.6),
    )
    assert frontier([beaten, good, cheap]) == [cheap, good]
    assert frontier([good, same]) == [good], "equal arms stand for one another"


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_every_point_is_on_or_below_the_frontier(places: list[tuple[float, float]]) -> None:
    points = [point(str(index), x, y) for index, (x, y) in enumerate(places)]
    best = frontier(points)
    for each in points:
        assert any(other.x <= each.x and other.y >= each.y for other in best)
    assert all(one.x < two.x and one.y < two.y for one, two in pairwise(best))


@given(st.lists(st.tuples(NUMBERS, st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=8))
def test_whiskers_and_zero_are_inside_their_scale(given: list[tuple[float, float, float]]) -> None:
    whiskers = [Whisker(1, value, value - down, value + up, False) for value, down, up in given]
    scale = span(whiskers)
    for each in whiskers:
        assert 0 <= scale(each.low) <= scale(each.value) <= scale(each.high) <= 100
    assert 0 < scale(0.0) < 100


def test_only_sure_dots_are_filled_and_each_row_is_read_out() -> None:
    unsure, sure = Whisker(2, 0.1, -0.1, 0.3, False), Whisker(2, 0.2, 0.1, 0.3, True)
    scale = span([unsure, sure])
    assert 'class="interval s2"' in whisker(unsure, scale, "a < b")
    assert 'class="interval s2 sure"' in whisker(sure, scale, "a")
    assert 'aria-label="a &lt; b"' in whisker(unsure, scale, "a < b")


@pytest.mark.parametrize("arms", [1, 2, 8, 12])
def test_names_in_a_plane_plot_stay_inside_it_and_apart(arms: int) -> None:
    rng = np.random.default_rng(arms)
    points = [point(f"arm-number-{index}", 40 + 20 * rng.random(), rng.random()) for index in range(arms)]
    plot = plane(points, measure("train", "seconds"), measure("test", "accuracy"), start=0.1)
    found = re.findall(r'<text class="name s\d" x="([\d.]+)" y="([\d.]+)">([^<]*)', plot)
    assert len(found) == arms
    places = [(float(x), float(y), float(x) + 6 * len(text)) for x, y, text in found]
    assert all(x >= 0 and end <= 380 and 0 <= y <= 250 for x, y, end in places)
    if arms <= 8:
        for index, (x, y, end) in enumerate(places):
            assert not any(abs(y - v) < 9 and x < stop and u < end for u, v, stop in places[:index])


def test_one_arm_or_equal_arms_can_be_drawn() -> None:
    seconds, accuracy = measure("train", "seconds"), measure("test", "accuracy")
    for points in ([point("a", 0, 0)], [point("a", 50, 0.5), point("b", 50, 0.5)]):
        assert "nan" not in plane(points, seconds, accuracy)


@pytest.mark.parametrize(("longest", "unit"), [(64, " s<"), (640, " min<"), (64_000, " h<")])
def test_costs_are_in_a_unit_that_suits_them(longest: float, unit: str) -> None:
    plot = plane(
        [point("a", longest / 4, 0.5), point("b", longest, 0.6)], measure("train", "seconds"), measure("t", "kl")
    )
    assert unit in plot


def test_names_keep_both_ends_when_they_are_cut() -> None:
    cut = shortened("objective=dft,lr=0.0003,epochs=3")
    assert len(cut) == 24
    assert cut.startswith("objective=df")
    assert cut.endswith("epochs=3")
    assert shortened("sft") == "sft"


def test_bands_hold_every_seed_and_lines_are_their_mean(example: ComparisonResult) -> None:
    (loss,) = [chart for chart in charts(example)[0] if chart.name == "loss"]
    line, arm = loss.lines[0], example.arms[0]
    seeds = np.array([run.curves["train"]["loss"] for run in arm.runs], dtype=float)
    assert line.y == pytest.approx(seeds.mean(0))
    assert line.low == pytest.approx(seeds.min(0))
    assert line.high == pytest.approx(seeds.max(0))


def test_seeds_of_unequal_length_are_drawn_as_far_as_all_of_them_go(example: ComparisonResult) -> None:
    arm = example.arms[0]
    table = {name: column[:10] for name, column in arm.runs[0].curves["train"].items()}
    table["loss"] = [None, *table["loss"][1:]]
    arm = replace(arm, runs=[replace(arm.runs[0], curves={"train": table}), *arm.runs[1:]])
    (loss,) = [chart for chart in charts(replace(example, arms=[arm]))[0] if chart.name == "loss"]
    assert loss.lines[0].x == arm.runs[1].curves["train"]["step"][1:10]


def test_differences_are_signed_and_in_the_unit_of_their_measure() -> None:
    accuracy, seconds, kl = measure("test", "accuracy"), measure("train", "seconds"), measure("test", "kl")
    assert difference_text(accuracy, -0.123) == "−12.3"
    assert difference_text(accuracy, -0.0001) == "0.0"
    assert difference_text(seconds, 18.24) == "+18.2"
    assert difference_text(kl, -0.13712) == "−0.137"
    assert difference_text(kl, 0.0) == "0"
    assert value_text(accuracy, 0.5) == "50.0\u202f%"


def test_the_claim_figure_has_every_seed_interval_and_verdict(example: ComparisonResult) -> None:
    figure = claim_figure(example)
    root = ElementTree.fromstring(figure)
    assert root.get("width") == str(WIDTH)
    numbers = {(claim.metric, arm): seeds for claim in example.claims for arm, seeds in claim.arms.items()}
    assert figure.count("<circle") == sum(map(len, numbers.values()))
    assert figure.count("stroke-linecap") == len(numbers)
    text = " ".join(root.itertext())
    for claim in example.claims:
        assert f": {claim.verdict}" in text
    assert 'stroke-dasharray="4 3"' in figure, "the bound of a claim about one arm's own number"
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 172 <= float(circle.get("cx", 0)) <= WIDTH - 84


def test_the_claim_figure_is_the_same_every_time_and_loads_nothing(example: ComparisonResult) -> None:
    later = replace(example, created="2030-01-01T00:00:00+00:00", seconds=1.0)
    assert claim_figure(example) == claim_figure(later)
    links = claim_figure(example).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"http|url\(|href|<script| id=", links)


def test_a_claim_without_numbers_still_has_its_verdict(example: ComparisonResult) -> None:
    empty = replace(example.claims[0], metric="train.log.loss", arms={}, effect=None, interval=[None, None])
    figure = claim_figure(replace(example, claims=[replace(empty, text="<b> & more", verdict="inconclusive")]))
    assert "&lt;b&gt; &amp; more: inconclusive" in figure
    ElementTree.fromstring(figure)
    ElementTree.fromstring(claim_figure(replace(example, claims=[])))


def test_what_is_no_cost_has_no_frontier_and_shares_are_in_per_cent() -> None:
    points = [
        Point("rl", 1, 0.0, 0.4, 0.3, 0.5),
        Point("both", 2, 0.5, 0.6, 0.5, 0.7),
        Point("sft", 3, 1.0, 0.5, 0.4, 0.6),
    ]
    plot = plane(points, measure("train", "imitated"), measure("test", "accuracy"))
    assert "frontier" not in plot
    assert plot.count('class="spot') == plot.count(' on"') == 3
    assert "100\u202f%" in plot
    assert "frontier" in plane(points, measure("train", "seconds"), measure("test", "accuracy"))
