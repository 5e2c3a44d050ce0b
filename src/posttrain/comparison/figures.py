"""The plots of a comparison's page as inline SVG; colours come from the page's CSS (`--c1` ... `--c8`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from posttrain.reporting.plots import Scale, tick

WIDTH, HEIGHT = 380.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 24.0
CHARACTER = 6.2
"""Width of a character of a label, in pixels, at 11 pixels: a little more than most fonts have."""
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
    """One row of a dot-and-whisker plot, as wide as what holds it: ticks, zero, interval and dot. `text` is read out."""
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


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both cost and quality, from the cheapest to the dearest."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def pareto(points: Sequence[Point], x_name: str, y_name: str) -> Markup:
    """Quality `y_name` against cost `x_name`; the frontier is a stepped line, and what is on it is filled."""
    if not points:
        return Markup("")
    costs, ends = [point.x for point in points], [end for point in points for end in (point.low, point.high)]
    x = _padded(costs, LEFT + 6, WIDTH - RIGHT, from_zero=True)
    y = _padded(ends, HEIGHT - BOTTOM, TOP)
    best = frontier(points)
    steps = "".join(
        f"{'H' if index else 'M'}{x(p.x):g} {'V' if index else ''}{y(p.y):g}" for index, p in enumerate(best)
    )
    parts = [*_axes(x, y, x_name, y_name), Markup('<path class="frontier" d="{d}"/>').format(d=steps)]
    mark = Markup(
        '<path class="line s{c}" d="M{x:g} {low:g}V{high:g}"/><circle class="spot s{c}{on}" cx="{x:g}" cy="{y:g}" r="5"/>'
    )
    parts += [
        mark.format(c=p.colour, x=x(p.x), y=y(p.y), low=y(p.low), high=y(p.high), on=" on" if p in best else "")
        for p in points
    ]
    parts += _labels([(shortened(p.label), p.colour, x(p.x), y(p.y)) for p in points])
    return Markup('<svg class="plane" viewBox="0 0 {w:g} {h:g}" role="img" aria-label="{label}">{body}</svg>').format(
        w=WIDTH,
        h=HEIGHT,
        label=f"{y_name} against {x_name}: "
        + "; ".join(f"{p.label} {tick(y_name, p.y)} at {tick(x_name, p.x)}" for p in points),
        body=Markup("").join(parts),
    )


def shortened(label: str, longest: int = LONGEST) -> str:
    """`label`, its middle cut out where it is longer than `longest` characters: its two ends tell it from the others."""
    if len(label) <= longest:
        return label
    head = longest // 2
    return f"{label[:head]}…{label[len(label) - (longest - head - 1) :]}"


def _padded(values: Sequence[float], start: float, end: float, from_zero: bool = False) -> Scale:
    """A scale with room around `values`; a cost's axis starts at zero where that costs less than half the plot."""
    low, high = min(values), max(values)
    if from_zero and low <= high * 0.6:
        return Scale(0.0, high * 1.08 or 1.0, start, end)
    room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, end)


def _axes(x: Scale, y: Scale, x_name: str, y_name: str) -> list[Markup]:
    line = Markup('<path class="rule" d="M{x0:g} {y:g}H{x1:g}"/><text class="tick" x="{at:g}" y="{ty:g}">{text}</text>')
    across = [
        line.format(x0=LEFT, x1=WIDTH - RIGHT, y=y(value), at=LEFT - 6, ty=y(value) + 3.5, text=tick(y_name, value))
        for value in y.ticks()
    ]
    foot = Markup('<text class="tick mid" x="{x:g}" y="{y:g}">{text}</text>')
    return across + [foot.format(x=x(value), y=HEIGHT - 7, text=tick(x_name, value)) for value in x.ticks()]


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
