"""Claims: decided by a rule that was written before anything was run, and kept as `claims/NN-name.json`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from posttrain.comparison.analysis import change_of_difference, difference, recovered, value
from posttrain.comparison.measures import measure
from posttrain.comparison.result import ArmResult, ClaimResult, ComparisonResult, Measure, Verdict
from posttrain.comparison.spec import Claim
from posttrain.comparison.wording import effect_text
from posttrain.errors import UserError, nearest
from posttrain.evaluation.statistics import Interval

_SHIPPED = Path(str(files("posttrain"))) / "claims"


def shipped_claims() -> dict[str, Path]:
    """Name (`36-asft`) -> claim file that comes with the package."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}


def find_claim(name: str) -> Path:
    """The claim file of a paper's number, its slug, both together, or a path. Raises `UserError`.

    A paper may have several files; then its number alone is refused.
    """
    shipped = shipped_claims()
    found = [path for key, path in shipped.items() if _is_called(key, name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(f"'{path.stem}'" for path in found)
        raise UserError(f"paper {name} has {len(found)} claim files; say which: {names}")
    if Path(name).is_file():
        return Path(name)
    raise UserError(f"no claim file is called '{name}': {nearest(name, shipped)}")


def _is_called(file: str, name: str) -> bool:
    """Is `name` the name of a claim file, its paper's number, or the rest of it?"""
    number, _, slug = file.partition("-")
    return name in (file, slug, number, number.lstrip("0"))


def decided(claims: Sequence[Claim], arms: Mapping[str, ArmResult]) -> list[ClaimResult]:
    """What the runs say of each claim; `arms` holds the start as `base`."""
    return [_decided(claim, arms) for claim in claims]


def write_claims(result: ComparisonResult, folder: Path) -> Path:
    """Write `NN-name.json`: the claims with every seed's numbers, and the comparison that they are drawn from.

    Learning curves, and contrasts between arms that no claim compares, stay in the comparison's own folder.
    """
    content = {
        "paper": result.paper,
        "name": result.name,
        "description": result.description,
        "claims": [asdict(claim) for claim in result.claims],
        "seconds": result.seconds,
        "versions": result.versions,
        "machine": result.machine,
        "comparison": _kept(result).to_json(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def _kept(result: ComparisonResult) -> ComparisonResult:
    compared = {(claim.metric, claim.of, claim.minus) for claim in result.claims}
    compared |= {(claim.metric, *claim.than) for claim in result.claims if claim.than}
    arms = [replace(arm, runs=[replace(run, curves={}, watched={}) for run in arm.runs]) for arm in result.arms]
    return replace(
        result,
        arms=arms,
        spec=_without_place(result.spec),
        contrasts=[found for found in result.contrasts if (found.metric, found.arm, found.minus) in compared],
    )


def _without_place(spec: Any) -> Any:
    """What a claim file says, with the recipes beside it named as it names them, wherever the package is installed."""
    if isinstance(spec, Mapping):
        return {key: _without_place(value) for key, value in spec.items()}
    return spec.removeprefix(f"{_SHIPPED}/") if isinstance(spec, str) else spec


def read_claims(folder: Path, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each claim of each file in a folder, or of those `names` alone (a paper's number, slug, or both).

    Raises `UserError` for a name that no file has, and for a file that holds no claims.
    """
    paths = sorted(folder.glob("*.json"))
    for name in names:
        if not any(_is_called(path.stem, name) for path in paths):
            raise UserError(
                f"no claim in '{folder}' is called '{name}': {nearest(name, [path.stem for path in paths])}"
            )
    rows = []
    for path in paths:
        if names and not any(_is_called(path.stem, name) for name in names):
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows += [{"name": content["name"], "paper": content["paper"], **claim} for claim in content["claims"]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"'{path}' is no file of claims; run the claim again") from None
    return rows


def _decided(claim: Claim, arms: Mapping[str, ArmResult]) -> ClaimResult:
    each = measure(*claim.metric.split(".", 1))
    complete = set(claim.named) <= set(arms)
    interval = _interval(claim, each, arms) if complete else None
    verdict = _verdict(claim, interval)
    runs = {name: arms[name].runs if name in arms else [] for name in claim.named}
    ends = interval.to_json() if interval is not None else {"estimate": None, "low": None, "high": None}
    return ClaimResult(
        text=claim.text,
        metric=claim.metric,
        of=claim.of,
        minus=claim.minus,
        at_least=claim.at_least,
        at_most=claim.at_most,
        seeds=sorted({run.seed for run in runs[claim.of]}),
        arms={
            name: [run.values[each.name] for run in found if each.name in run.values] for name, found in runs.items()
        },
        effect=ends["estimate"],
        interval=[ends["low"], ends["high"]],
        verdict=verdict,
        sentence=_sentence(claim, each, interval, verdict),
        over=claim.over,
        than=claim.than,
    )


def _interval(claim: Claim, each: Measure, arms: Mapping[str, ArmResult]) -> Interval | None:
    arm = arms[claim.of]
    if claim.minus is None:
        return value(arm, each)
    minus = arms[claim.minus]
    if claim.over is not None:
        return recovered(arm, minus, arms[claim.over], each)
    if claim.than is not None:
        return change_of_difference(arm, minus, (arms[claim.than[0]], arms[claim.than[1]]), each)
    found = difference(arm, minus, each)
    return found.interval if found is not None else None


def _verdict(claim: Claim, interval: Interval | None) -> Verdict:
    if interval is None:
        return "inconclusive"
    low, high = interval.low, interval.high
    if claim.at_most is not None:
        low, high, border = -high, -low, -claim.at_most
    else:
        border = claim.at_least or 0.0
    return "supported" if low >= border else "not supported" if high < border else "inconclusive"


def _sentence(claim: Claim, each: Measure, interval: Interval | None, verdict: Verdict) -> str:
    about = claim.of if claim.minus is None else f"{claim.of} minus {claim.minus}"
    if claim.than is not None:
        about += f", less {claim.than[0]} minus {claim.than[1]}"
    if claim.over is not None:
        about = f"{claim.of} of the gap from {claim.minus} to {claim.over}"
    if interval is None:
        return f"{verdict}: no finished run has {claim.metric} of {about}"
    if claim.over is not None and not math.isfinite(interval.low):
        return (
            f"{verdict}: {each.label}: it is not sure that {claim.over} is above {claim.minus}, so there may be no gap"
        )
    kind = {"minus": claim.minus, "over": claim.over}
    effect, span = effect_text(each, interval.estimate, (interval.low, interval.high), **kind)
    border, _ = effect_text(each, (claim.at_most or 0.0) if claim.at_least is None else claim.at_least, (), **kind)
    rule = f"{border} or {'less' if claim.at_least is None else 'more'}"
    sure = f"95 % interval {span}" if span else "one seed: no interval"
    return f"{verdict}: {each.label}, {about}: {effect} ({sure}); claimed: {rule}"
