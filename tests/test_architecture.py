"""Imports run downwards only: the order of the rooms in docs/architecture.md is the order of the code."""

import ast
from pathlib import Path

import posttrain

SOURCE = Path(posttrain.__file__).parent

# From the bottom to the top. A room imports from rooms of earlier lines, and from itself.
LEVELS = [
    {"errors", "terminal"},
    {"registry"},
    {"data"},
    {"schedules", "attention"},
    {"rewards", "generation", "policy", "objectives", "advantages", "recipe"},
    {"tasks", "adaptation", "curation"},
    {"sources", "evaluation"},
    {"training", "reporting", "catalogue"},
    {"stages"},
    {"manifest"},
    {"run"},
    {"comparison"},
    {"inspection", "chat", "cli_comparison", "cli_verifiers"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# The same inside stages/: what all kinds share, asking models, what a train stage learns from, parts of kinds, kinds.
STAGE_LEVELS = [
    {"fingerprints"},
    {"context"},
    {"plan", "files", "models", "shape", "encoded", "reference_scores", "scoring"},
    {"answers"},
    {"supplies"},
    {"preferred", "round_trip", "untrained", "watching"},
    {"train", "evaluate", "generate", "curate", "merge", "continual"},
    {"__init__"},
]
STAGE_LEVEL = {room: level for level, rooms in enumerate(STAGE_LEVELS) for room in rooms}


def room_of(path: Path, house: Path = SOURCE) -> str:
    return path.relative_to(house).parts[0].removesuffix(".py")


def imported_rooms(path: Path, house: str = "posttrain") -> set[str]:
    """Rooms of a house that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == house:
                names = [f"{house}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import; write the whole name")
        inside = [name.removeprefix(f"{house}.") for name in names if name.startswith(f"{house}.")]
        found |= {name.split(".")[0] for name in inside}
    return found


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


def test_every_room_has_its_level():
    assert {room_of(path) for path in files()} <= set(LEVEL)


def test_imports_run_downwards():
    wrong = [
        f"{path.relative_to(SOURCE)} imports {room}"
        for path in files()
        for room in imported_rooms(path) - {room_of(path), "__version__"}
        if LEVEL[room] >= LEVEL[room_of(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_run_downwards_inside_the_stages():
    stages = SOURCE / "stages"
    paths = sorted(stages.rglob("*.py"))
    assert {room_of(path, stages) for path in paths} == set(STAGE_LEVEL)
    wrong = [
        f"{path.relative_to(stages)} imports {room}"
        for path in paths
        for room in imported_rooms(path, "posttrain.stages") - {room_of(path, stages)}
        if STAGE_LEVEL[room] >= STAGE_LEVEL[room_of(path, stages)]
    ]
    assert not wrong, "\n".join(wrong)


def test_objectives_know_only_torch_and_data():
    allowed = {"data", "objectives", "registry", "errors", "schedules"}
    wrong = {path.name: imported_rooms(path) - allowed for path in files() if room_of(path) == "objectives"}
    assert not {name: rooms for name, rooms in wrong.items() if rooms}


def test_data_imports_none_of_the_other_rooms():
    wrong = {path.name: imported_rooms(path) - {"data", "errors"} for path in files() if room_of(path) == "data"}
    assert not {name: rooms for name, rooms in wrong.items() if rooms}


def test_no_file_is_longer_than_four_hundred_lines():
    long = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in files()}
    assert not {name: lines for name, lines in long.items() if lines > 400}
