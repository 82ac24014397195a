"""Contracts of all data sets, commands and analysis tools; each check is also shown to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import noise, tree

from zoo import registry
from zoo.data import cifar
from zoo.data._read import read
from zoo.spec import DataSet, Split
from zoo.training.batches import Batches

ROOT = Path(__file__).resolve().parent.parent

# ---- data sets ----


def data_faults(build: Callable[[], DataSet], counts: tuple[int, int], classes: int) -> list[str]:
    """Violations of a data set: ``counts`` (training before validation is split off, test), ``classes`` (0: any), splits, seed."""
    first, second = build(), build()
    found, names = [], [{*split.files} for split in (first.train, first.val, first.test)]
    if (got := (len(first.train) + len(first.val), len(first.test))) != counts:
        found.append(f"counts are {got}, declared {counts}")
    if classes and len(first.classes) != classes:
        found.append(f"{len(first.classes)} classes, declared {classes}")
    if len(set.union(*names)) != sum(len(split) for split in (first.train, first.val, first.test)):
        found.append("splits share samples")
    for one, other in zip((first.train, first.val, first.test), (second.train, second.val, second.test)):
        if len(one) and not (one.targets.min() >= 0 and one.targets.max() < len(first.classes)):
            found.append("labels are out of range")
            return found
        if [*one.files] != [*other.files] or any(map(differ, batches(first, one), batches(second, other))):
            found.append("another batch from the same seed")
    if first.digest != second.digest:
        found.append("another digest from the same seed")
    return found


def batches(data: DataSet, split: Split) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The first 100 samples of an epoch, augmented."""
    if not len(split):
        return []
    made = Batches(
        split, np.arange(len(split)), 50, torch.device("cpu"), data.mean, data.std, split.images.shape[1], augment=("flip",)
    )
    return [(batch.inputs, batch.targets) for batch, _ in zip(made.epoch(1), range(2))]


def differ(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return not all(map(torch.equal, one, other))


class Stored:
    """Like a set of torchvision: two classes, twelve training and six test images."""

    classes = ("zero", "one")

    def __init__(self, root: str, train: bool = True, transform: object = None, download: bool = False) -> None:
        n = 12 if train else 6
        self.data = np.stack([noise(seed + 50 * train, 32) for seed in range(n)])
        self.targets = [seed % 2 for seed in range(n)]


def caltech(root: Path) -> Path:
    tree(root, splits=("101_ObjectCategories",), classes=("BACKGROUND_Google", "ant", "bass"), n=9)
    for split, numbers in (("train", range(6)), ("test", range(6, 9))):
        lines = [f"{name}/{i}.jpg" for name in ("ant", "bass") for i in numbers]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def listed(root: Path) -> Path:
    tree(root, splits=("images",), n=9)
    rows = [f"images/{name}/{i}.png,{name},{'test' if i > 5 else 'train'}" for name in ("cat", "dog") for i in range(9)]
    (root / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return root / "list.csv"


def arrays(root: Path) -> Path:
    root.mkdir()
    parts = {"train": range(12), "test": range(12, 18)}
    images = {f"x_{split}": np.stack([noise(i) for i in numbers]) for split, numbers in parts.items()}
    labels = {f"y_{split}": np.array([i % 2 for i in numbers]) for split, numbers in parts.items()}
    np.savez(root / "a.npz", **images, **labels)
    return root / "a.npz"


HUNDRED = tuple(f"c{i:02}" for i in range(100))
STAND_INS: dict[str, tuple[Callable[[Path], Path], tuple[int, int], int]] = {
    "caltech101": (caltech, (12, 6), 2),
    "cifar10": (lambda root: tree(root, classes=cifar.CLASSES, n=2), (20, 20), 10),
    "cifar100": (lambda root: tree(root, classes=HUNDRED, n=2), (200, 200), 100),
    "folder": (tree, (12, 12), 2),
    "list": (listed, (12, 6), 2),
    "npz": (arrays, (12, 6), 2),
    "torchvision": (lambda root: root, (12, 6), 2),
}
"""Small files in the layout of each set that reads some, with their counts and classes; any other set is built as it is."""


def test_the_walk_over_data_sets_is_not_empty() -> None:
    assert len(registry.names("data")) >= 8
    assert set(STAND_INS) < set(registry.names("data")), "one is generated, and no stand-in is left over"


@pytest.mark.parametrize("name", registry.names("data"))
def test_every_data_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets, "Stored", Stored, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, "Stored"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    fields = registry.entry("data", name)
    make, counts, classes = STAND_INS.get(name, (None, fields["counts"], fields["classes"]))
    folder = make(tmp_path / "data") if make and name != "torchvision" else ""
    called = "torchvision:Stored" if name == "torchvision" else name
    assert data_faults(lambda: read(called, folder, size=32, val=0.25, seed=3), counts, classes) == []


def small(chance: np.random.Generator | None = None, names: str = "abcdef", last: int = 1) -> DataSet:
    """Six samples of two classes; with ``chance`` their pixels are drawn from it."""
    pixels = (chance or np.random.default_rng(0)).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    targets = np.array([0, 1, 0, 1, 0, last])
    train, val, test = (Split(pixels[i : i + 2], targets[i : i + 2], names[i : i + 2]) for i in (0, 2, 4))
    return DataSet("small", ("x", "y"), train, val, test, (0.5,) * 3, (0.25,) * 3, "0" * 64)


FAULTY: dict[str, tuple[Callable[[], DataSet], tuple[int, int], int]] = {
    "counts are (4, 2), declared (5, 2)": (small, (5, 2), 2),
    "2 classes, declared 3": (small, (4, 2), 3),
    "splits share samples": (lambda: small(names="abcdea"), (4, 2), 2),
    "labels are out of range": (lambda: small(last=2), (4, 2), 2),
    "another batch from the same seed": (lambda: small(np.random.default_rng()), (4, 2), 2),
    "another digest from the same seed": (lambda: replace(small(), digest=os.urandom(32).hex()), (4, 2), 2),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_data_set_is_caught(fault: str) -> None:
    assert data_faults(small, (4, 2), 2) == []
    assert set(data_faults(*FAULTY[fault])) == {fault}


# ---- commands and analysis tools ----

COMMANDS = sorted(path.stem for path in (ROOT / "zoo" / "cli").glob("[!_]*.py"))
TOOLS = sorted(path.stem for path in (ROOT / "zoo" / "analysis").glob("[!_]*.py"))
HELP = """
import importlib, json, sys
import click

def walk(name, command):
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            yield from walk(f"{name} {each}", command.get_command(context, each))

found, count = [], 0
for module in sys.argv[2:]:
    name = module.rpartition(".")[2].replace("_", "-")
    for words, command in walk(name, importlib.import_module(module).command):
        count += 1
        text = command.get_help(click.Context(command, info_name=words))
        if not command.help or not (f"zoo {words}" in text or f"zoo analyze {words}" in text):
            found.append(f"{words}: help without an example")
        if words == name and command.name != name:
            found.append(f"{words}: is called {command.name}")
    if heavy := [each for each in json.loads(sys.argv[1]) if each in sys.modules]:
        found.append(f"{name}: help imports {', '.join(heavy)}")
print(json.dumps([count, found]))
"""


def help_faults(*modules: str, path: Path = ROOT) -> tuple[int, list[str]]:
    """Number of commands and sub-commands of the modules, and errors in their help, from a new process."""
    heavy = json.dumps(["torch", "onnxruntime", "matplotlib", "scipy", "torchvision", "timm"])
    env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    ran = subprocess.run([sys.executable, "-c", HELP, heavy, *modules], env=env, capture_output=True, text=True, check=True)
    count, found = json.loads(ran.stdout)
    return count, found


def not_in_readme(names: list[str]) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [name for name in names if f"`{name}`" not in text and f"`zoo {name}" not in text and f", {name}" not in text]


def test_the_walk_over_commands_and_tools_is_not_empty() -> None:
    assert len(COMMANDS) >= 15 and len(TOOLS) >= 4


def test_every_command_and_tool_has_help_without_torch() -> None:
    count, found = help_faults(*(f"zoo.cli.{name}" for name in COMMANDS), *(f"zoo.analysis.{name}" for name in TOOLS))
    assert count >= len(COMMANDS) + 2 * len(TOOLS), "the tools as files and as sub-commands of analyze"
    assert found == []


def test_the_readme_names_every_command_and_tool() -> None:
    assert not_in_readme(COMMANDS + [f"analyze {name.replace('_', '-')}" for name in TOOLS[:1]]) == []
    assert not_in_readme([name.replace("_", "-") for name in TOOLS[1:]]) == []
    assert not_in_readme(["walk-dog"]) == ["walk-dog"]


def test_a_tool_that_imports_torch_or_has_no_example_is_caught(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "bad_tool.py").write_text("import click, torch\n@click.command('other')\ndef command(): 'Does it.'\n")
    assert help_faults("bad_tool", path=tmp_path) == (
        1,
        ["bad-tool: help without an example", "bad-tool: is called other", "bad-tool: help imports torch"],
    )
