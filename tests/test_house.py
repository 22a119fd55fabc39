"""What the source keeps to: data flows one way, and no tensor is made where or as torch's defaults say."""

from __future__ import annotations

import ast
from pathlib import Path

import pysel

ROOT = Path(pysel.__file__).parent

# from the ground up; neighbours on a floor do not know each other
FLOORS = [
    {"_library"},
    {"_checks"},
    {"_fake", "_inputs", "data", "random"},
    {"_autograd", "files", "reference"},
    {"ops"},
    {"sae"},
    {"nn"},
    {"selection"},
    {"samplers"},
    {"plot", "distributed", "__main__"},
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
    assert {("selection", "ops"), ("ops", "_checks"), ("_checks", "_library")} <= edges
    assert not wrong(edges)


def test_a_way_back_is_found() -> None:
    back = {("ops", "selection"), ("selection", "reference"), ("sae", "samplers"), ("random", "_inputs")}
    assert wrong({*back, ("selection", "ops"), ("plot", "sae")}) == back


# --- tensors ---------------------------------------------------------------------------

_MADE_OF_FLOATS = {"zeros", "ones", "empty", "full", "linspace", "logspace", "eye", "rand", "randn"}
_MADE = _MADE_OF_FLOATS | {"arange", "as_tensor", "randint", "randperm", "scalar_tensor", "tensor"}


def by_default(source: str) -> list[str]:
    """The calls of torch that make a tensor on the default device, or of the default dtype."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _MADE):
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
            named = {keyword.arg for keyword in node.keywords}
            if not ({"device"} | ({"dtype"} if node.func.attr in _MADE_OF_FLOATS else set())) <= named:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_tensors_are_not_made_by_default() -> None:
    """The caller may have set another default device or dtype: torch.set_default_device("meta")."""
    assert not {path: found for path in ROOT.rglob("*.py") if (found := by_default(path.read_text()))}


def test_what_is_made_by_default_is_found() -> None:
    assert by_default("torch.ones(3, device=x.device)") == ["line 1: torch.ones(3, device=x.device)"]
    assert len(by_default("torch.tensor(3, dtype=torch.int64)\ntorch.arange(3)\ntorch.zeros(2)")) == 3
    assert not by_default("torch.ones_like(x), x.new_zeros(3), torch.arange(3, device=x.device), mine.zeros(3)")
