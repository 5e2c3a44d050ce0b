"""Where the time went, stage by stage."""

from dataclasses import dataclass

from posttrain.reporting.formats import is_number
from posttrain.reporting.reading import Run

PARTS = ("data", "generation", "forward", "backward", "optimiser")
"""Parts of a training step in the order in which they happen; others that a run logs come after them."""


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage: `parts` sum up to `seconds`, with `other` for what no part was measured of."""

    stage: str
    kind: str
    status: str
    seconds: float
    parts: dict[str, float]


def timings(run: Run) -> list[StageTime]:
    """The time of every stage that took any, from the manifest and the `time/...` metrics."""
    found = []
    for name in dict.fromkeys([*run.stages, *run.metrics]):
        stage = run.stages.get(name, {})
        rows = [row for kind in run.metrics.get(name, {}).values() for row in kind]
        measured: dict[str, float] = {}
        for row in rows:
            for key, value in row.items():
                if key.startswith("time/") and is_number(value) and value >= 0:
                    part = key.removeprefix("time/")
                    measured[part] = measured.get(part, 0.0) + float(value)
        # a crashed run's manifest may be older than its metrics
        clock = [stage.get("seconds"), *(row.get("seconds") for row in rows), sum(measured.values())]
        seconds = max((float(value) for value in clock if is_number(value)), default=0.0)
        if seconds > 0:
            parts = {part: measured.pop(part) for part in PARTS if measured.get(part)}
            parts |= {part: value for part, value in sorted(measured.items()) if value and part != "other"}
            parts["other"] = max(0.0, seconds - sum(parts.values()))
            found.append(StageTime(name, str(stage.get("kind", "")), str(stage.get("status", "")), seconds, parts))
    return found


def part_names(times: list[StageTime]) -> list[str]:
    """Every part that took time in some stage: those of `PARTS` in their order, `other` last."""
    found = {part for row in times for part, seconds in row.parts.items() if seconds}
    rank = {**dict.fromkeys(found, len(PARTS)), "other": len(PARTS) + 1} | {p: i for i, p in enumerate(PARTS)}
    return sorted(found, key=lambda part: (rank[part], part))
