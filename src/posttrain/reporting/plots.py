"""Learning curves as inline SVG: text stays text, colours come from the page's CSS (`--c1`, `--c2`, ...)."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from posttrain.reporting.formats import measure, number

WIDTH, HEIGHT = 380.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 10.0, 24.0
MOST_POINTS = 150
"""Longer curves are drawn as this many means with the range that they stand for."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: `y[P]` over `x[P]`, with a band from `low[P]` to `high[P]` where there is one.

    `every`: how many values each point is the mean of. `lost`: how many values were not finite and are not drawn.
    `colour`: which of the page's colours it has, from 1.
    """

    label: str
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    every: int = 1
    lost: int = 0
    colour: int = 1


def series(
    label: str,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colour: int = 1,
) -> Series:
    """A series without its non-finite points, thinned to at most `MOST_POINTS` means of neighbouring points.

    `low` and `high` are empty or as long as `y`. A thinned series without a band of its own gets its range as one.
    """
    finite = np.isfinite(np.asarray(y, dtype=float))
    count = int(finite.sum())
    steps, values = (np.asarray(column, dtype=float)[finite] for column in (x, y))
    # where one end of the band is missing or not finite, the band closes on the line
    bounds = [np.asarray(end if len(end) else y, dtype=float)[finite] for end in (low, high)]
    lows, highs = (np.where(np.isfinite(end), end, values) for end in bounds)
    every = max(1, math.ceil(count / MOST_POINTS))
    if every > 1:
        starts = np.arange(0, count, every)
        ends = np.append(starts[1:], count)
        steps, values = steps[ends - 1], np.add.reduceat(values, starts) / (ends - starts)
        lows, highs = np.minimum.reduceat(lows, starts), np.maximum.reduceat(highs, starts)
    band = every > 1 or len(low) > 0 or len(high) > 0
    low, high = (lows.tolist(), highs.tolist()) if band else ([], [])
    return Series(label, steps.tolist(), values.tolist(), low, high, every, lost=len(y) - count, colour=colour)


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`, to a tenth; what lies below a logarithmic scale is drawn on its edge."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, self.low)) if self.log else value
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, whole: bool = False) -> list[float]:
        """Round values inside the scale, about five of them."""
        from matplotlib.ticker import LogLocator, MaxNLocator  # slow to import, and needed for a page alone

        if not self.log:
            found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(self.low, self.high)
        else:
            dense = math.log10(self.high / self.low) < 2.5
            found = LogLocator(10, subs=(1, 2, 5) if dense else (1,), numticks=6).tick_values(self.low, self.high)
        # the locators' sums leave 0.30000000000000004 behind
        return [float(f"{tick:.10g}") for tick in found if self.low <= tick <= self.high]


def curve(name: str, lines: Sequence[Series], along: str = "step") -> Markup:
    """An SVG chart of the metric `name` over `along`; an empty string when there is no finite point to draw.

    The page's script reads `data-curve` to show the values under the pointer.
    """
    drawn = [line for line in lines if line.x]
    if not drawn:
        return Markup("")
    x, y = _scales(name, drawn)
    parts = [*_grid(name, x, y)]
    parts += [_band(line, x, y) for line in drawn if line.low and line.high]
    parts += [_line(line, x, y) for line in drawn]
    label = "; ".join(
        f"{name}, {line.label}: {measure(name, line.y[0])} at {along} {number(line.x[0])}, "
        f"{measure(name, line.y[-1])} at {along} {number(line.x[-1])}"
        for line in drawn
    )
    pointed = [
        {
            "label": line.label,
            "colour": line.colour,
            "x": [x(value) for value in line.x],
            "y": [y(value) for value in line.y],
            "at": [f"{along} {number(value)}" for value in line.x],
            "text": [measure(name, value) for value in line.y],
        }
        for line in drawn
    ]
    return Markup(
        '<svg class="curve" viewBox="0 0 {w:g} {h:g}" role="img" aria-label="{label}" data-curve="{data}">{body}</svg>'
    ).format(
        w=WIDTH, h=HEIGHT, label=label, data=json.dumps(pointed, separators=(",", ":")), body=Markup("").join(parts)
    )


def _scales(name: str, lines: Sequence[Series]) -> tuple[Scale, Scale]:
    steps = [value for line in lines for value in (line.x[0], line.x[-1])]
    values = [v for line in lines for v in (*line.y, *line.low, *line.high) if math.isfinite(v)]
    low, high = min(values), max(values)
    means = [value for line in lines for value in line.y]
    # a rate may end in zero and is read best on a straight scale, whatever its range
    log = name != "lr" and min(means) > 0 and max(means) / min(means) > 30
    if log:
        low, high = max(low, min(means) / 10) / 1.1, high * 1.1
    else:
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        low, high = (low - room if low < 0 or low - room > 0 else 0.0), high + room
    first, last = min(steps), max(steps)
    if first == last:
        first, last = first - 1, last + 1
    return Scale(first, last, LEFT, WIDTH - RIGHT - 6), Scale(low, high, HEIGHT - BOTTOM, TOP, log)


def _grid(name: str, x: Scale, y: Scale) -> list[Markup]:
    line = Markup('<path class="rule" d="M{x0:g} {y:g}H{x1:g}"/><text class="tick" x="{at:g}" y="{ty:g}">{text}</text>')
    across = [
        line.format(x0=LEFT, x1=WIDTH - RIGHT, y=y(at), at=LEFT - 6, ty=y(at) + 3.5, text=tick(name, at))
        for at in y.ticks()
    ]
    foot = Markup('<text class="tick mid" x="{x:g}" y="{y:g}">{text}</text>')
    below = [foot.format(x=x(at), y=HEIGHT - 7, text=tick("", at)) for at in x.ticks(whole=True)]
    return [*across, *below]


def tick(name: str, value: float) -> str:
    """What stands at a tick of an axis of the metric `name`: `40 %`, `0.25`, `12k`."""
    if name and measure(name, value).endswith("%"):
        return f"{number(round(100 * value, 6))}\u202f%"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and unit != "k"):
            return f"{number(value / size)}{unit}"
    if 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return number(value)


def _band(line: Series, x: Scale, y: Scale) -> Markup:
    forth = [f"{x(at):g},{y(value):g}" for at, value in zip(line.x, line.high, strict=True)]
    back = [f"{x(at):g},{y(value):g}" for at, value in zip(line.x, line.low, strict=True)]
    if len(line.x) == 1:
        return Markup('<path class="stem s{c}" d="M{a}L{b}"/>').format(c=line.colour, a=forth[0], b=back[0])
    return Markup('<polygon class="band s{c}" points="{p}"/>').format(c=line.colour, p=" ".join(forth + back[::-1]))


def _line(line: Series, x: Scale, y: Scale) -> Markup:
    places = [(x(at), y(value)) for at, value in zip(line.x, line.y, strict=True)]
    path = escape(" ".join(f"{px:g},{py:g}" for px, py in places))
    drawn = Markup('<polyline class="line s{c}" points="{p}"/>').format(c=line.colour, p=path)
    if len(places) <= 25:
        dot = Markup('<circle class="dot s{c}" cx="{x:g}" cy="{y:g}" r="2.4"/>')
        drawn += Markup("").join(dot.format(c=line.colour, x=px, y=py) for px, py in places)
    return drawn
