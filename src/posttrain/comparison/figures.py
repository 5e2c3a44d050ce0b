"""The plots of a comparison's page as inline SVG; colours come from the page's CSS (`--c1` ... `--c8`)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from posttrain.comparison.measures import limits
from posttrain.comparison.result import Measure
from posttrain.comparison.wording import title, value_text
from posttrain.reporting.plots import Scale, tick

WIDTH, HEIGHT = 380.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 24.0
CHARACTER = 7.2
"""Width of a character of a label, in pixels, bold, at 11 pixels: a little more than most fonts have."""
LONGEST = 24
"""Longer labels are cut; the page has them in full beside the plots."""


@dataclass(frozen=True)
class Whisker:
    """A value with its interval; `colour`: 1 to 8; `sure`: filled, because the interval leaves out zero."""

    colour: int
    value: float
    low: float
    high: float
    sure: bool


@dataclass(frozen=True)
class Point:
    """An arm in the plane of cost `x` (less is better) and quality `y` (more is better), `low` and `high` of `y`."""

    label: str
    colour: int
    x: float
    y: float
    low: float
    high: float


def span(whiskers: Sequence[Whisker]) -> Scale:
    """A scale in percent of the width that holds all `whiskers` and zero, with room at both ends."""
    ends = [0.0, *(end for each in whiskers for end in (each.value, each.low, each.high))]
    low, high = min(ends), max(ends)
    room = (high - low) * 0.06 or 1.0
    return Scale(low - room, high + room, 0.0, 100.0)


def whisker(each: Whisker, scale: Scale, text: str) -> Markup:
    """One row of a dot-and-whisker plot, as wide as what holds it; `text` is what a screen reader says."""
    ticks = Markup("").join(
        Markup('<line class="{c}" x1="{x:g}%" x2="{x:g}%" y1="0" y2="22"/>').format(
            c="at" if value else "zero", x=scale(value)
        )
        for value in scale.ticks()
    )
    drawn = Markup(
        '<svg class="interval s{c}{sure}" role="img" aria-label="{text}">{ticks}'
        '<line class="range" x1="{low:g}%" x2="{high:g}%" y1="11" y2="11"/><circle cx="{at:g}%" cy="11" r="4.5"/></svg>'
    )
    return drawn.format(
        c=each.colour,
        sure=" sure" if each.sure else "",
        text=text,
        ticks=ticks,
        low=scale(each.low),
        high=scale(each.high),
        at=scale(each.value),
    )


def axis(scale: Scale, text: Callable[[float], str]) -> Markup:
    """The ticks below the rows of a dot-and-whisker plot; at most five, zero among them."""
    found = scale.ticks()
    zero = found.index(0.0)
    some = [value for index, value in enumerate(found) if len(found) < 6 or (index - zero) % 2 == 0]
    drawn = [value for value in some if 5 < scale(value) < 95]  # the text of others would stick out
    label = Markup('<text class="tick mid" x="{x:g}%" y="12">{text}</text>')
    ticks = [label.format(x=scale(value), text=text(value) if value else "0") for value in drawn]
    return Markup('<svg class="foot" aria-hidden="true">{}</svg>').format(Markup("").join(ticks))


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both cost and quality, from the cheapest to the dearest."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def plane(points: Sequence[Point], across: Measure, quality: Measure, start: float | None = None) -> Markup:
    """Quality against another measure, of one arm or more. Where that is a cost (less is better), those that no other
    beats in both are filled and joined by steps; else all are filled.

    `start`: the quality before training, a dashed line. Filling goes by the means alone; the lines are intervals.
    """
    size, x_text = _unit_across(across, max(point.x for point in points))
    known = [end for point in points for end in (point.low, point.high)] + ([] if start is None else [start])
    x = padded([point.x / size for point in points], LEFT + 8, WIDTH - RIGHT, from_zero=True)
    y = padded(known, HEIGHT - BOTTOM, TOP, within=limits(quality))
    best, parts = list(points), _axes(x, y, x_text, quality)
    if across.larger_is_better is False:
        best = frontier(points)
        steps = "".join(
            f"{'H' if i else 'M'}{x(p.x / size):g}{'V' if i else ' '}{y(p.y):g}" for i, p in enumerate(best)
        )
        parts.append(Markup('<path class="frontier" d="{d}"/>').format(d=steps))
    if start is not None:
        line = (
            '<path class="start" d="M{x0:g} {y:g}H{x1:g}"/><text class="tick halo" x="{x1:g}" y="{ty:g}">start</text>'
        )
        parts.append(Markup(line).format(x0=LEFT, x1=WIDTH - RIGHT, y=y(start), ty=y(start) - 4))
    mark = Markup(
        '<path class="whisker s{c}" d="M{x:g} {low:g}V{high:g}"/>'
        '<circle class="spot s{c}{on}" cx="{x:g}" cy="{y:g}" r="5"/>'
    )
    parts += [
        mark.format(c=p.colour, x=x(p.x / size), y=y(p.y), low=y(p.low), high=y(p.high), on=" on" if p in best else "")
        for p in points
    ]
    parts += _labels([(shortened(p.label), p.colour, x(p.x / size), y(p.y)) for p in points])
    told = "; ".join(f"{p.label} {value_text(quality, p.y)} at {value_text(across, p.x)}" for p in points)
    label = f"{title(quality)} against {title(across).lower()}: {told}"
    return Markup('<svg class="plane" viewBox="0 0 {w:g} {h:g}" role="img" aria-label="{label}">{body}</svg>').format(
        w=WIDTH, h=HEIGHT, label=label, body=Markup("").join(parts)
    )


def shortened(label: str, longest: int = LONGEST) -> str:
    """`label`, at most `longest` characters of it: the middle is cut out, as names mostly differ at their ends."""
    if len(label) <= longest:
        return label
    head = longest // 2
    return f"{label[:head]}…{label[len(label) - (longest - head - 1) :]}"


def padded(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    from_zero: bool = False,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Scale:
    """A scale with room around `values`, `within` what they can be; from zero where that costs less than half of it."""
    low, high = min(values), max(values)
    if from_zero and low <= high * 0.6:
        return Scale(0.0, high * 1.08 or 1.0, start, end)
    room = (high - low) * 0.12 or abs(high) * 0.1 or 0.1
    return Scale(max(low - room, within[0]), min(high + room, within[1]), start, end)


def _time_unit(longest: float) -> tuple[float, str]:
    """Seconds of the unit in which times up to `longest` seconds are read best, and its sign."""
    return next((unit for unit in ((3600.0, " h"), (60.0, " min")) if longest >= 3 * unit[0]), (1.0, " s"))


def _unit_across(across: Measure, longest: float) -> tuple[float, Callable[[float], str]]:
    """What values are divided by before they are drawn, and how the ticks are written."""
    if across.unit == "points":
        return 1.0, lambda value: f"{100 * value:g}\u202f%"
    size, unit = _time_unit(longest) if across.unit == "s" else (1.0, "")
    return size, lambda value: tick("", value) + unit


def _axes(x: Scale, y: Scale, x_text: Callable[[float], str], quality: Measure) -> list[Markup]:
    line = Markup('<path class="rule" d="M{x0:g} {y:g}H{x1:g}"/><text class="tick" x="{at:g}" y="{ty:g}">{text}</text>')
    across = [
        line.format(x0=LEFT, x1=WIDTH - RIGHT, y=y(at), at=LEFT - 6, ty=y(at) + 3.5, text=tick(quality.metric, at))
        for at in y.ticks()
    ]
    foot = Markup('<text class="tick mid" x="{x:g}" y="{y:g}">{text}</text>')
    return across + [foot.format(x=x(at), y=HEIGHT - 7, text=x_text(at)) for at in x.ticks()]


def _labels(points: Sequence[tuple[str, int, float, float]]) -> list[Markup]:
    """A name at each point, at the first place around it where it meets neither a point nor an earlier name."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, _, x, y in points]
    drawn = []
    for text, colour, x, y in points:
        width = CHARACTER * len(text)
        places = [
            (left, y + down - 6)
            for down in (0, -13, 13, -26, 26, -39, 39, -52, 52)
            for left in (x + 9, x - 9 - width, x - width / 2)
            if abs(down) > 6 or left != x - width / 2
        ]
        boxes = [(left, top, left + width, top + 12) for left, top in places]
        inside = [b for b in boxes if b[0] >= LEFT and b[2] <= WIDTH and b[1] >= 0 and b[3] <= HEIGHT - BOTTOM]
        box = next((box for box in inside if not any(_meet(box, other) for other in taken)), (inside or boxes)[0])
        taken.append(box)
        label = Markup('<text class="name s{c}" x="{x:g}" y="{y:g}">{text}</text>')
        drawn.append(label.format(c=colour, x=round(box[0], 1), y=round(box[1] + 10, 1), text=text))
    return drawn


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
