"""What a recipe says of its objective becomes an `Objective`."""

from collections.abc import Mapping
from collections.abc import Sequence as List
from typing import Any

from posttrain.data import Origin
from posttrain.errors import UserError, nearest
from posttrain.objectives.embedding_noise import EmbeddingNoise
from posttrain.objectives.objective import COMMON, Forward, Objective, Term, declarations, objectives
from posttrain.objectives.reduction import Reduction
from posttrain.objectives.response_noise import response_noise
from posttrain.schedules import build_schedule


def build_objective(spec: str | Mapping[str, Any] | List[str | Mapping[str, Any]]) -> Objective:
    """What a recipe says of its objective: a name, `{name: ..., option: value}`, or a list of such terms to add up.

    Besides its own options every term takes `weight` (a factor, or a schedule of it), `reduction` (`tokens`,
    `sequences`, `groups` or `{constant: length}`), `origins` (a list such as `[demonstration]`), `where` (a scalar of
    the sequences that count, such as `chosen`; `not chosen` are the others), `weight_column`, and `embedding_noise`
    (the term reads scores under noise: a number is the α of NEFTune, see `EmbeddingNoise`; a mapping the options of
    `ResponseNoise`).
    """
    if isinstance(spec, (str, Mapping)):
        return Objective(_build_term({"name": spec} if isinstance(spec, str) else spec))
    if not spec:
        raise UserError("the objective is an empty list; give at least one term, for example 'nll'")
    return Objective(*(_build_term({"name": term} if isinstance(term, str) else term) for term in spec))


def _build_term(spec: Mapping[str, Any]) -> Term:
    common = {key: spec[key] for key in COMMON if key in spec}
    name, options = objectives.options({key: value for key, value in spec.items() if key not in COMMON})
    declared = declarations[name]
    function = objectives[name]
    own = declared.forward(**options) if declared.forward else None
    forward = _forward(name, own, common.get("embedding_noise"))
    needs = declared.needs(**options) if callable(declared.needs) else declared.needs
    prepare = declared.prepare_for(**options) if declared.prepare_for else declared.prepare
    return Term(
        name=name,
        function=lambda scores, batch: function(scores, batch, **options),
        needs=needs,
        reduction=_reduction(name, common["reduction"]) if "reduction" in common else declared.reduction,
        level=declared.level,
        origins=_origins(name, common["origins"]) if common.get("origins") is not None else None,
        where=_where(name, common["where"]) if common.get("where") is not None else None,
        weight_column=common.get("weight_column"),
        weight=build_schedule(common.get("weight", 1.0), f"objective '{name}': 'weight'"),
        forward=forward,
        scalars=declared.scalars,
        prepare=prepare or getattr(forward, "prepare", None),
        columns=declared.columns,
        check=declared.check,
        remember=declared.remember,
    )


def _forward(name: str, own: Forward | None, noise: Any) -> Forward | None:
    if noise is None:
        return own
    if own is not None:
        raise UserError(f"objective '{name}' has a forward pass of its own; leave 'embedding_noise' out")
    if isinstance(noise, Mapping):
        return response_noise(name, noise)
    if not isinstance(noise, (int, float)) or isinstance(noise, bool) or not 0 <= noise < float("inf"):
        raise UserError(f"objective '{name}': 'embedding_noise' must be a number, 0 or more, found {noise!r}")
    return EmbeddingNoise(float(noise)) if noise else None


def _reduction(name: str, spec: Any) -> Reduction:
    if isinstance(spec, Mapping) and list(spec) == ["constant"]:
        length = spec["constant"]
        if not isinstance(length, (int, float)) or isinstance(length, bool):
            raise UserError(f"objective '{name}': reduction constant needs a length in tokens, found {length!r}")
        return Reduction("constant", float(length))
    if spec in ("tokens", "sequences", "groups"):
        return Reduction(spec)
    raise UserError(
        f"objective '{name}': reduction {spec!r} is none of tokens, sequences, groups, {{constant: length}}"
    )


def _origins(name: str, given: Any) -> frozenset[Origin]:
    known = {origin.name.lower(): origin for origin in Origin}
    items = [str(item) for item in given] if isinstance(given, list) else [str(given)]
    if not items:
        raise UserError(
            f"objective '{name}': 'origins' is an empty list; leave it out to count targets of every origin"
        )
    for item in items:
        if item not in known:
            raise UserError(f"objective '{name}': unknown origin '{item}': {nearest(item, known)}")
    return frozenset(known[item] for item in items)


def _where(name: str, given: Any) -> str:
    if not isinstance(given, str) or not given.removeprefix("not ").strip():
        raise UserError(f"objective '{name}': 'where' must be the name of a scalar, or 'not' and one, found {given!r}")
    return given
