"""Imports go down the list of layers, siblings do not import each other, and there are no import cycles."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    "errors spec files csv_files file_kinds",
    "recipe recipe_tables recipe_text recipe_types registry sampling console tables runtimes thread_settings run_folders hub model_files recipes _build focal_options",
    "machine focal_formula focal_arguments focal_kernels ops numpy metrics tensor_files calibration weights doctor",
    "models losses data",
    "training.model_specs training.freezing training.checkpoint training.processes training.signals training.lint training.profile",
    "training.optim training.batches training.distil training.feature_cache training.feature_runtimes training.views training.qat training.depthwise training.losses training.checks",
    "training.loop",
    "training.features",
    "training.session",
    "training.describe training.build",
    "run",
    "export report",
    "training.start training",
    "sweep reproduce bench predictor api",
    "cli analysis __main__",
]
"""From the bottom up. All files of a folder are in one layer, except for training, whose files are listed."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
SIBLINGS = {"models", "losses", "data"}
FOLDERS = SIBLINGS | {"analysis"}
"""Folders whose files do not import each other, except for files that begin with an underscore."""


def part_of(module: str) -> str:
    """``zoo.data._augment`` is in ``data``, ``zoo.training.loop`` in ``training.loop``."""
    names = module.split(".")[1:]
    return ".".join(names[: 2 if names and names[0] == "training" else 1])


def modules(tree: ast.AST) -> set[str]:
    """Modules of zoo that a file imports, in functions and for types too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("zoo.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "zoo":
            for alias in node.names:
                path = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = path.is_dir() or path.with_suffix(".py").is_file() or node.module == "zoo"
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found - {"zoo", "zoo.__version__"}


def files() -> list[tuple[str, Path]]:
    """Every source file as a dotted name, with its path."""
    found = []
    for path in sorted([*ROOT.glob("zoo/**/*.py"), *ROOT.glob("export/*.py"), *ROOT.glob("bench/**/*.py")]):
        inside = path.relative_to(ROOT).with_suffix("").parts
        if inside[:2] in (("zoo", "export"), ("zoo", "bench")) or inside == ("zoo", "__init__"):
            continue  # the links, and the package that re-exports the others
        name = ".".join(inside if inside[0] == "zoo" else ("zoo", *inside))
        found.append((name.removesuffix(".__init__"), path))
    return found


def violations(module: str, tree: ast.AST) -> list[str]:
    """The imports of a file that break the rules."""
    part, wrong = part_of(module), []
    for imported in sorted(modules(tree)):
        other, leaf = part_of(imported), imported.rpartition(".")[2]
        if other not in LEVEL:
            wrong.append(f"{module} imports {imported}, which has no layer")
        elif other == part:
            if part in FOLDERS and module.count(".") > 1 and imported.count(".") > 1 and not leaf.startswith("_"):
                wrong.append(f"{module} imports its sibling {leaf}")
        elif LEVEL[other] > LEVEL[part] or {part, other} <= SIBLINGS:
            wrong.append(f"{module} imports {imported}")
    return wrong


def test_every_file_has_a_layer() -> None:
    parts = {part_of(module) for module, _ in files()}
    assert len(parts) > 15
    assert parts == set(LEVEL) - {"_build"}


@pytest.mark.parametrize(("module", "path"), files(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_down(module: str, path: Path) -> None:
    assert violations(module, ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_lower_layers_do_not_import_torch() -> None:
    """At the top of a file, except under ``if TYPE_CHECKING``."""
    low = [path for module, path in files() if LEVEL.get(part_of(module), 9) < 2]
    tops = {
        path.name: [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        for path in low
    }
    imported = {name: " ".join(map(ast.unparse, nodes)) for name, nodes in tops.items()}
    assert len(low) > 15 and [name for name, text in imported.items() if "torch" in text.replace("torchrun", "")] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: modules(ast.parse(path.read_text(encoding="utf-8"))) - {module} for module, path in files()}
    assert sum(map(len, graph.values())) > 100
    # a folder's __init__ re-exports names of its files, and they may use what it defines
    packages = {module for module, path in files() if path.name == "__init__.py"}
    inner = {module: {name for name in found if name not in packages} for module, found in graph.items()}
    list(TopologicalSorter(inner).static_order())
    with pytest.raises(CycleError):
        list(TopologicalSorter(inner | {"zoo.errors": {"zoo.recipe"}}).static_order())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("zoo.spec", "from zoo.run import load"),
        ("zoo.models.cnn", "import zoo.losses.ldam"),
        ("zoo.sampling", "from zoo.training import optim"),
        ("zoo.data.cifar", "from zoo.data.folder import build"),
        ("zoo.data.cifar", "def f():\n    from zoo.data import _parts, folder"),
        ("zoo.losses.focal_loss", "import zoo.losses.ldam"),
        ("zoo.analysis.dead_relu", "from zoo.analysis import conv_matrix"),
        ("zoo.training.loop", "if TYPE_CHECKING:\n    from zoo.training.session import Session"),
        ("zoo.training.session", "from zoo import report"),
        ("zoo.run", "from zoo.training import train"),
    ],
)
def test_an_upward_import_is_seen(module: str, text: str) -> None:
    assert violations(module, ast.parse(text))
