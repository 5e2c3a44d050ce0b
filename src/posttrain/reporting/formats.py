"""How the report writes numbers, durations and moments."""

import math
import re
from datetime import datetime
from typing import Any, TypeGuard

_SHARE = re.compile(
    r"^(average_|learned_)?accuracy|@\d+($|/)|^valid$|^truncated$|^imitated$|validity|_share$|_rate$|^faithful"
)


def is_number(value: Any) -> TypeGuard[int | float]:
    """True for an int or a float (NaN and infinities too), not for a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_share(name: str) -> bool:
    """Is the metric `name` a share, read best in percent (`accuracy`, `pass@4`, `format_validity` ...)?"""
    return bool(_SHARE.search(name))


def number(value: float) -> str:
    """Four significant digits, whole numbers in full: `12,345`, `0.4127`, `3e-5`, `NaN`."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e15:
        text = f"{value:.3g}"
    elif value == int(value) or abs(value) >= 10_000:
        text = f"{value:,.0f}"
    elif abs(value) >= 1000:
        text = f"{value:,.1f}"
    elif abs(value) >= 1e-3:
        text = f"{value:.4g}"
    else:
        text = f"{value:.3g}"
    text = re.sub(r"e([+-])0*(\d+)", lambda found: f"e{found[1].strip('+')}{found[2]}", text)
    return text.replace("-", "−", 1) if text.startswith("-") else text


def percent(value: float) -> str:
    """A share between 0 and 1 in percent with one decimal: `64.0 %`."""
    return f"{number(value) if math.isnan(value) else f'{100 * value:.1f}'}\u202f%".replace("-", "−")


def points(value: float) -> str:
    """A difference of two shares in signed percentage points: `+42.7`."""
    return f"{100 * value:+.1f}".replace("-", "−")


def measure(name: str, value: float) -> str:
    """The value of metric `name`: in percent for a share, else as a number."""
    return percent(value) if is_share(name) else number(value)


def duration(seconds: float) -> str:
    """`4.2 s`, `48 s`, `5 min 12 s`, `2 h 03 min`, `3 d 4 h`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def moment(iso: Any) -> str:
    """An ISO time as `2026-03-01 14:05`, with its zone where it has one; anything else as it is."""
    try:
        return datetime.fromisoformat(str(iso)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(iso or "")
