"""Imports point down only, and files stay short."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import onestep

PACKAGE = Path(onestep.__file__).parent
# From the bottom to the top. The parts of "kinds" never import each other; other ranks may within themselves.
RANKS = {
    "ground": {
        "noise", "step_intervals", "denoiser", "seeding", "precision", "processes", "files", "folders", "reading",
        "images", "cache", "assets", "annotations", "ranges", "haar",
    },
    "parts": {"models", "samplers", "toy.gaussian_mixture", "toy.networks", "toy.teacher", "toy"},
    "kinds": {"objectives", "data", "metrics"},
    "toy": {"toy.data", "toy.metrics"},
    "engine": {"engine"},
    "evaluation": {"evaluation", "reports", "upscaling"},
    "runs": {"distillation", "pretraining"},
    "top": {"export", "pages"},
    "edge": {"config", "entry", "build", "api"},
    "commands": {"commands", "profiling", "__main__"},
}  # fmt: skip
# Parts that may read a configuration, in addition to the scripts of the repository.
EDGE = RANKS["edge"] | RANKS["commands"]
RANK_OF = {part: rank for rank, parts in enumerate(RANKS.values()) for part in parts}
KINDS = list(RANKS).index("kinds")


def module_name(file: Path) -> str:
    names = ["onestep", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(source: str) -> set[str]:
    """The modules that ``source`` imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            found |= {name if (name := f"{base}.{alias.name}") in FILES else base for alias in node.names}
    return found


def part_of(module: str) -> str | None:
    """``"models"`` for ``onestep.models.edm.denoiser``; None for the package itself.

    The parts of the toy world, ``"toy.data"`` and so on, are of several ranks.
    """
    names = module.split(".")[1:]
    return ".".join(names[:2]) if names[:1] == ["toy"] else names[0] if names else None


IMPORTS = {name: imported_modules(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
GRAPH = {name: {one for one in found if one.split(".")[0] == "onestep"} for name, found in IMPORTS.items()}


def test_the_walk_finds_the_imports() -> None:
    source = """
import onestep.noise, os.path
def f():
    from onestep.models.edm import denoiser
    from onestep.seeding import a
"""
    found = {"onestep.noise", "os.path", "onestep.models.edm.denoiser", "onestep.seeding"}
    assert imported_modules(source) == found
    assert len(FILES) > 30 and "onestep.noise" in GRAPH["onestep.denoiser"]


def test_every_part_has_a_rank() -> None:
    unknown = {part for name in FILES if (part := part_of(name)) is not None} - set(RANK_OF)
    assert not unknown, f"give {unknown} a place in RANKS"


def test_imports_point_down() -> None:
    wrong = set()
    for name, imports in GRAPH.items():
        part = part_of(name)
        for target in imports:
            target_part = part_of(target)
            if part is None or target_part is None or part == target_part:
                continue
            mine, theirs = RANK_OF[part], RANK_OF[target_part]
            if theirs > mine or (theirs == mine == KINDS):
                wrong.add(f"{name} imports {target}")
    assert not wrong


def test_configurations_are_read_at_the_edge_alone() -> None:
    readers = {
        name
        for name, imports in IMPORTS.items()
        if any(target == "onestep.config" or target.split(".")[0] in ("hydra", "omegaconf") for target in imports)
    }
    assert {name for name in readers if part_of(name) not in EDGE} == set()
    assert "onestep.build.distillation" in readers


def test_no_cycles() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises CycleError with the modules' names


def test_no_file_is_over_300_lines() -> None:
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_nothing_depends_on_the_clock_of_the_day() -> None:
    """It can be set back during a run: durations are monotonic, and files are ordered by their names."""
    of_day = {"time.time", "st_mtime", "getmtime", "st_ctime"}
    found = {(name, word) for name, file in FILES.items() for word in of_day if word in file.read_text("utf-8")}
    assert not found
