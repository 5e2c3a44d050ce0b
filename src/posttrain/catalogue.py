"""The papers that the house holds: what each is called and made of, whether it runs, and how its claim fared."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from posttrain.errors import UserError, nearest
from posttrain.registry import Registry

Verdict = Literal["supported", "not supported", "inconclusive"]
"""What a small run said of one claim."""

FAMILIES: Mapping[str, str] = {
    "supervised": "supervised objectives, token and sample weights",
    "rl": "reinforcement learning and rewards",
    "continuum": "between SFT and RL",
    "curation": "data selection and synthesis",
    "parameters": "parameters, efficiency, decoding",
    "multimodal": "images and latent reasoning",
    "evaluation": "evaluation",
    "multistage": "multi-stage production recipes",
}
"""Family -> what its papers have in common, in the order in which tables show them."""


@dataclass(frozen=True)
class Paper:
    """One paper.

    `arxiv` is its arXiv id (`2509.23753`), None where it has none. `family` is a key of `FAMILIES`; a paper with two
    halves (TL-Training) is in the family of its first. `pieces` are the parts of the house that it uses, `room.piece`;
    those that are not there yet (see `exists`) are planned. `recipe` is the name of its shipped recipe, once there is
    one.
    """

    number: int
    slug: str
    title: str
    arxiv: str | None
    family: str
    pieces: tuple[str, ...]
    recipe: str

    @property
    def built(self) -> tuple[str, ...]:
        """The pieces that are there."""
        return tuple(piece for piece in self.pieces if exists(piece))

    @property
    def planned(self) -> tuple[str, ...]:
        """The pieces that are not there yet."""
        return tuple(piece for piece in self.pieces if not exists(piece))

    @property
    def key(self) -> str:
        """Number and slug, `36-asft`: the name of its claim file and of its page."""
        return f"{self.number:02d}-{self.slug}"


@dataclass(frozen=True)
class Status:
    """How far a paper has come: the name of its recipe or "planned", and how its claims fared, each verdict counted:
    "2 supported, 1 inconclusive"; of one claim its verdict alone; "not run"."""

    recipe: str
    claim: str


@cache
def papers() -> tuple[Paper, ...]:
    """All papers, by number."""
    rows = yaml.safe_load(files("posttrain").joinpath("catalogue.yaml").read_text(encoding="utf-8"))
    found = [Paper(**{"recipe": row["slug"], "arxiv": None, **row, "pieces": tuple(row["pieces"])}) for row in rows]
    return tuple(sorted(found, key=lambda paper: paper.number))


def paper(number_or_slug: int | str) -> Paper:
    """The paper called `36`, `"36"`, `"asft"` or `"36-asft"`.

    Raises `UserError` that names the nearest slug, or the range of numbers.
    """
    wanted = str(number_or_slug)
    for candidate in papers():
        if wanted in (candidate.slug, candidate.key, str(candidate.number), f"{candidate.number:02d}"):
            return candidate
    if wanted.lstrip("-").isdecimal():
        raise UserError(f"there is no paper {wanted}: papers are numbered 1 to {papers()[-1].number}")
    raise UserError(f"unknown paper '{wanted}': {nearest(wanted, [known.slug for known in papers()])}")


@cache
def exists(piece: str) -> bool:
    """Is `room.piece` there: registered in its room, a module of it, or something that it exports?"""
    room, _, name = piece.partition(".")
    module = import_module(f"posttrain.{room}")
    registries = [found for found in vars(module).values() if isinstance(found, Registry)]
    if any(name in registry for registry in registries) or hasattr(module, name):
        return True
    return hasattr(module, "__path__") and find_spec(f"{module.__name__}.{name}") is not None


def status(paper: Paper, recipes: Collection[str], claims_dir: Path | None) -> Status:
    """What `recipes` (the names that are shipped) and the claim file in `claims_dir` say of `paper`.

    A paper may have several claim files (`31-tl-training.json`, `31-irm.json`); without any (or with `claims_dir` None)
    the claim is "not run". Raises `UserError` for a claim file that is broken or belongs to another paper.
    """
    recipe = paper.recipe if paper.recipe in recipes else "planned"
    paths = sorted(claims_dir.glob(f"{paper.number:02d}-*.json")) if claims_dir else []
    if not paths:
        return Status(recipe, "not run")
    found = [verdict for path in paths for verdict in _verdicts(path, paper)]
    counted = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in get_args(Verdict) if verdict in found)
    return Status(recipe, found[0] if len(found) == 1 else counted)


def _verdicts(path: Path, paper: Paper) -> list[Verdict]:
    """The verdict of every claim in a claim file: `{"paper": 36, "claims": [{"verdict": ...}, ...], ...}`."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"claim file {path} is not JSON ({error}); run the claim again") from None
    claims = content.get("claims") if isinstance(content, dict) else None
    if not isinstance(claims, list) or not claims:
        raise UserError(f"claim file {path} has no list 'claims'; run the claim again")
    if content.get("paper") != paper.number:
        raise UserError(
            f"claim file {path} is about paper {content.get('paper')!r}, its name says {paper.number}; "
            f"rename it or run the claim again"
        )
    verdicts = [claim.get("verdict") if isinstance(claim, dict) else None for claim in claims]
    for position, verdict in enumerate(verdicts, start=1):
        if verdict not in get_args(Verdict):
            raise UserError(
                f"claim {position} in {path} has verdict {verdict!r}; it must be one of: {', '.join(get_args(Verdict))}"
            )
    return cast(list[Verdict], verdicts)
