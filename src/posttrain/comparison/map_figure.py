"""The map of a comparison for a docs page: quality against how much of a run is imitation, an SVG file of its own."""

from collections.abc import Sequence

from markupsafe import Markup

from posttrain.comparison.figures import HEIGHT, WIDTH
from posttrain.comparison.measures import IMITATED
from posttrain.comparison.panels import planes
from posttrain.comparison.result import ComparisonResult, Measure

EDGE, HEADING = 18, 26

_STYLE = Markup("""
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif; }
.heading { font-size: 13px; font-weight: 600; fill: #1b1d21; }
.tick { font-size: 11px; fill: #646a75; text-anchor: end; }
.mid { text-anchor: middle; } .rule { stroke: #e1e2e5; fill: none; }
.start { stroke: #646a75; stroke-dasharray: 3 3; fill: none; } text.start { stroke: none; }
.whisker { stroke: currentColor; stroke-width: 2; opacity: 0.4; fill: none; } .spot { fill: currentColor; }
.name { fill: currentColor; font-size: 11px; font-weight: 600; }
.halo, .name { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; }
.s0 { color: #646a75; } .s1 { color: #2767bd; } .s2 { color: #c8591a; } .s3 { color: #2a8a63; } .s4 { color: #8454c0; }
.s5 { color: #2767bd; } .s6 { color: #c8591a; } .s7 { color: #2a8a63; } .s8 { color: #8454c0; }
""")


def map_figure(result: ComparisonResult, quality: Sequence[Measure]) -> str:
    """One plot below the other, a point for each arm. The same result gives the same bytes; "" without such numbers."""
    across = next((each for each in result.measures if each.metric == IMITATED), None)
    drawn = planes(result, quality, across) if across is not None else []
    if not drawn:
        return ""
    part = Markup(
        '<g transform="translate({x} {y})"><text class="heading" y="12">{title}</text>\n'
        '<svg y="{top}" width="{w}" height="{h}">{plot}</svg></g>'
    )
    step = HEADING + HEIGHT + EDGE
    parts = [
        part.format(x=EDGE, y=EDGE + index * step, title=title, top=HEADING - 6, w=WIDTH, h=HEIGHT, plot=plot)
        for index, (title, plot) in enumerate(drawn)
    ]
    width, height = WIDTH + 2 * EDGE, len(drawn) * step + EDGE
    frame = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}">\n'
        "<style>{style}</style>\n"
        '<rect x="0.5" y="0.5" width="{iw}" height="{ih}" rx="8" fill="#ffffff" stroke="#e1e2e5"/>\n{body}\n</svg>\n'
    )
    body = Markup("\n").join(parts)
    return str(frame.format(w=width, h=height, iw=width - 1, ih=height - 1, style=_STYLE, body=body))
