"""Data flows one way through the package: nothing imports what stands above it, and nothing imports the reference."""

from __future__ import annotations

import ast
from pathlib import Path

import pysel

ROOT = Path(pysel.__file__).parent

# from the ground up; neighbours on a floor do not know each other
FLOORS = [
    {"_C"},
    {"_checks"},
    {"_fake", "_inputs", "random"},
    {"_autograd", "files", "reference"},
    {"ops"},
    {"sae"},
    {"nn", "distributed"},
    {"samplers"},
    {"selection"},
    {"plot", "__main__"},
]


def room(module: str) -> str:
    """The file or folder of the package that a module is in."""
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("pysel.")}


def wrong(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the edges (who, whom) that do not lead down, or lead to the reference."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return {(who, whom) for who, whom in edges if who != whom and (floor[who] <= floor[whom] or whom == "reference")}


def test_data_flows_one_way() -> None:
    files = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]  # which opens all rooms
    edges = {
        (path.relative_to(ROOT).parts[0].removesuffix(".py"), room(name)) for path in files for name in imports(path)
    }
    assert {("selection", "ops"), ("ops", "_checks"), ("_checks", "_C")} <= edges
    assert not wrong(edges)


def test_a_way_back_is_found() -> None:
    back = {("ops", "selection"), ("selection", "reference"), ("sae", "samplers"), ("random", "_inputs")}
    assert wrong({*back, ("selection", "ops"), ("plot", "sae")}) == back
