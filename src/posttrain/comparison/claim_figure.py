"""The figure of a paper's claims for its docs page: an SVG file of its own, light on any background."""

from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap

from markupsafe import Markup

from posttrain.comparison.figures import padded, shortened
from posttrain.comparison.measures import limits, measure
from posttrain.comparison.result import ClaimResult, ComparisonResult, Estimate, Measure
from posttrain.comparison.wording import ends, value_text
from posttrain.reporting.plots import Scale, tick

WIDTH = 700
EDGE, LABELS, VALUES = 18, 172, 84
"""Pixels: the margin, and the columns of names to the left and of means to the right of the plot."""

ROW, LINE, AXIS, GAP = 27, 18, 24, 16
LETTERS = 86
"""Characters of a line of text; no font is known where the figure is shown."""

INK, MUTED, RULE, CLAIMED, OTHER = "#1b1d21", "#646a75", "#e1e2e5", "#2767bd", "#646a75"
VERDICTS = {"supported": "#177245", "not supported": "#b3261e", "inconclusive": "#8f5b00"}

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
_TEXT = Markup('<text x="{x:g}" y="{y:g}" fill="{fill}"{more}>{text}</text>')
_RULE = Markup('<path d="M{x:g} {y0:g}V{y1:g}" stroke="{stroke}"{more}/>')


def claim_figure(result: ComparisonResult) -> str:
    """Every seed of the claims' arms as a dot, means with their intervals, and each verdict in words.

    Claims in the same measure that follow one another share a plot. The same result gives the same bytes.
    """
    top, parts = float(EDGE), []
    for name, group in groupby(result.claims, key=lambda claim: claim.metric):
        claims = list(group)
        drawn, top = _plot(result, name, claims, top)
        parts += drawn
        for claim in claims:
            drawn, top = _verdict(claim, top)
            parts += drawn
        top += GAP
    height = round(top - GAP + EDGE / 2) if parts else 2 * EDGE
    label = "; ".join(f"{claim.text}: {claim.verdict}" for claim in result.claims)
    frame = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
        'aria-label="{label}" font-family="{font}" font-size="12.5">\n'
        '<rect x="0.5" y="0.5" width="{iw}" height="{ih}" rx="8" fill="#ffffff" stroke="{rule}"/>\n{body}\n</svg>\n'
    )
    body = Markup("\n").join(parts)
    return str(
        frame.format(w=WIDTH, h=height, iw=WIDTH - 1, ih=height - 1, label=label, font=_FONT, rule=RULE, body=body)
    )


def _plot(result: ComparisonResult, name: str, claims: Sequence[ClaimResult], top: float) -> tuple[list[Markup], float]:
    """The dots of one measure from `top` down, and where they end."""
    each = measure(*name.split(".", 1))
    parts = [_text(EDGE, top + 11, each.label[0].upper() + each.label[1:], INK, ' font-weight="600"')]
    seeds = {arm: numbers for claim in claims for arm, numbers in claim.arms.items() if numbers}
    if not seeds:
        return parts, top + LINE + 4
    key = f"dots: seeds; lines: means; bars: {100 * result.level:g}\u202f% intervals"
    parts.append(_text(WIDTH - EDGE, top + 11, key, MUTED, ' font-size="11" text-anchor="end"'))
    found = {arm: result.estimate(name, arm) for arm in seeds}
    known = [end for one in found.values() if one for end in ends(each, one) or ()]
    bounds = [bound for claim in claims if claim.minus is None for bound in (claim.at_least, claim.at_most)]
    borders = [bound for bound in bounds if bound is not None]
    known += [*borders, *(value for numbers in seeds.values() for value in numbers)]
    x = padded(known, LABELS, WIDTH - VALUES, within=limits(each))
    start, end = top + LINE, top + LINE + ROW * len(seeds)
    for at in x.ticks():
        parts.append(_rule(x(at), start, end, RULE))
        text = tick(each.metric, at) + (" s" if each.unit == "s" else "")
        parts.append(_text(x(at), end + 14, text, MUTED, ' font-size="11" text-anchor="middle"'))
    parts += [_rule(x(limit), start, end, INK, ' stroke-dasharray="4 3"') for limit in borders]
    for row, (arm, numbers) in enumerate(seeds.items()):
        colour = CLAIMED if arm in {claim.of for claim in claims} else OTHER
        parts += _row(each, arm, numbers, found[arm], x, start + ROW * (row + 0.5), colour)
    return parts, end + AXIS


def _row(
    each: Measure, arm: str, numbers: Sequence[float], found: Estimate | None, x: Scale, y: float, colour: str
) -> list[Markup]:
    """One arm: its name, interval, mean and seeds, at the height `y`."""
    parts = [_text(LABELS - 14, y + 4.5, shortened(arm, 20), INK, ' text-anchor="end"')]
    if found and (interval := ends(each, found)):
        bar = '<path d="M{x0:g} {y:g}H{x1:g}" stroke="{c}" stroke-width="7" stroke-linecap="round" opacity="0.25"/>'
        parts.append(Markup(bar).format(x0=x(interval[0]), x1=x(interval[1]), y=y, c=colour))
    mean = found.mean if found else sum(numbers) / len(numbers)
    parts += [_rule(x(mean), y - 8, y + 8, colour, ' stroke-width="3"'), *_dots(numbers, x, y, colour)]
    return [*parts, _text(WIDTH - EDGE, y + 4.5, value_text(each, mean), INK, ' text-anchor="end" font-weight="600"')]


def _dots(numbers: Sequence[float], x: Scale, y: float, colour: str) -> list[Markup]:
    """A dot for each seed, one below the other so that equal ones can be counted."""
    dot = Markup('<circle cx="{x:g}" cy="{y:g}" r="3.2" fill="#ffffff" stroke="{c}" stroke-width="1.6"/>')
    step = min(5.0, 14.0 / len(numbers))
    return [
        dot.format(x=x(value), y=round(y + (seed - (len(numbers) - 1) / 2) * step, 1), c=colour)
        for seed, value in enumerate(numbers)
    ]


def _verdict(claim: ClaimResult, top: float) -> tuple[list[Markup], float]:
    """The claim, its verdict and how it came about, from `top` down, and where they end."""
    parts = []
    for line in wrap(f"{claim.text}: {claim.verdict}", LETTERS):
        parts.append(_text(EDGE, top + 14, line, VERDICTS[claim.verdict], ' font-weight="600"'))
        top += LINE
    for line in wrap(claim.sentence, LETTERS + 24):
        parts.append(_text(EDGE, top + 12, line, MUTED, ' font-size="11.5"'))
        top += LINE - 2
    return parts, top + 5


def _text(x: float, y: float, text: str, fill: str, more: str = "") -> Markup:
    return _TEXT.format(x=x, y=y, fill=fill, more=Markup(more), text=text)


def _rule(x: float, y0: float, y1: float, stroke: str, more: str = "") -> Markup:
    return _RULE.format(x=x, y0=y0, y1=y1, stroke=stroke, more=Markup(more))
