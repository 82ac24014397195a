"""Imports go down the list of layers, and siblings don't know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    0: ["spec", "files"],
    1: [
        "recipe",
        "registry",
        "sampling",
        "console",
        "show",
        "runs",
        "stop",
        "recipes",
        "_build",
        "focal_formula",
        "focal_arguments",
    ],
    2: ["ops", "optim", "metrics", "host", "doctor", "lint", "parallel"],
    3: ["models", "losses", "data", "analysis"],
    4: ["train", "checkpoint", "weights"],
    5: ["run", "parts", "trainer", "state", "freezing", "objective"],
    6: ["export", "report"],
    7: ["sweep", "reproduce", "analyses", "bench", "predictor"],
    8: ["cli", "__main__"],
}
LEVEL = {name: level for level, names in LAYERS.items() for name in names}
SIBLINGS = {"models", "losses", "data", "analysis"}
UPWARD = {("run", "report")}  # a finished run draws itself


def imports(tree: ast.AST) -> set[str]:
    """Parts of zoo that a file imports, at any depth: ``zoo.data._augment`` gives ``data``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("zoo.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "zoo":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {"__version__"}


def files() -> list[tuple[str, Path]]:
    """Every source file with the part of zoo it belongs to."""
    found = []
    for path in sorted([*ROOT.glob("zoo/**/*.py"), *ROOT.glob("export/*.py"), *ROOT.glob("bench/**/*.py")]):
        inside = path.relative_to(ROOT).parts
        if inside[0] == "zoo" and inside[1] in ("export", "bench"):
            continue  # the links
        part = inside[1] if inside[0] == "zoo" else inside[0]
        part = part.removesuffix(".py")
        if part != "__init__":
            found.append((part, path))
    return found


def siblings(part: str, tree: ast.AST) -> list[str]:
    """Files of the same folder that a file imports, but for what they share: names that begin with an underscore."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[2] for alias in node.names if alias.name.startswith(f"zoo.{part}.")}
        elif isinstance(node, ast.ImportFrom) and node.module == f"zoo.{part}":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"zoo.{part}."):
            found.add(node.module.split(".")[2])
    return sorted(name for name in found if not name.startswith("_"))


def violations(part: str, tree: ast.AST) -> list[str]:
    """What a file of this part imports that it may not."""
    wrong = [f"{part} imports its sibling {name}" for name in siblings(part, tree)] if part in SIBLINGS else []
    for other in imports(tree) - {part}:
        if other not in LEVEL:
            wrong.append(f"{part} imports {other}, which has no layer")
        elif (part, other) not in UPWARD and (LEVEL[other] > LEVEL[part] or ({part, other} <= SIBLINGS)):
            wrong.append(f"{part} imports {other}")
    return wrong


def test_every_file_has_a_layer() -> None:
    parts = {part for part, _ in files()}
    assert len(parts) > 15
    assert parts <= set(LEVEL)


@pytest.mark.parametrize(("part", "path"), files(), ids=lambda value: value.name if isinstance(value, Path) else "")
def test_imports_go_down(part: str, path: Path) -> None:
    wrong = violations(part, ast.parse(path.read_text(encoding="utf-8")))
    assert [
        line for line in wrong if path.name != "__init__.py" or "sibling" not in line
    ] == []  # a folder may show what it has


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("spec", "from zoo.run import load"),
        ("models", "import zoo.losses.focal"),
        ("sampling", "from zoo.training import optim"),
        ("data", "from zoo.data.folder import build"),
        ("data", "def f():\n    from zoo.data import _parts, folder"),
        ("losses", "import zoo.losses.ldam"),
    ],
)
def test_an_upward_import_is_seen(part: str, text: str) -> None:
    assert violations(part, ast.parse(text))
