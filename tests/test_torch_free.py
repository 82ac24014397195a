"""Listings and help do not import torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "onnxruntime", "matplotlib", "scipy", "torchvision", "timm")


def loaded_by(*words: str, before: str = "") -> tuple[int, set[str]]:
    """Exit code of a zoo command, and the heavy packages that its process imported."""
    code = (
        f"import sys\n{before}\nfrom zoo.__main__ import run\nfrom contextlib import redirect_stdout\nimport io\n"
        f"with redirect_stdout(io.StringIO()): code = run({list(words)!r})\n"
        f"print(code, *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    code_word, *names = ran.stdout.split()
    return int(code_word), set(names)


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("train", "--help"),
        ("models",),
        ("data",),
        ("losses",),
        ("recipes",),
        ("models", "resnet", "--json"),
        ("train", "demo", "--dry-run"),
        ("train", "resnet23"),
    ],
)
def test_no_torch(words: tuple[str, ...]) -> None:
    code, heavy = loaded_by(*words)
    assert code == (2 if "resnet23" in words else 0)
    assert heavy == set()


def test_the_help_imports_only_what_it_prints() -> None:
    """The time of ``zoo --help`` is three times that of an empty Python; click alone takes twice that."""
    names = ("zoo.registry", "zoo.spec", "importlib.metadata", "dataclasses", "statistics", "difflib", "traceback", "rich")
    code = (
        f"import sys\nfrom zoo.__main__ import run\nrun(['--help'])\nprint([name for name in {names} if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.startswith("Usage: zoo") and ran.stdout.splitlines()[-1] == "[]"


def test_the_check_can_fail() -> None:
    assert loaded_by("--help", before="import torch") == (0, {"torch"})


def test_import_zoo_alone() -> None:
    code = "import sys, zoo; zoo.__version__; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_a_run_begins_without_what_only_its_end_needs() -> None:
    heavy = ["matplotlib", "onnx", "scipy.stats", "timm", "torch._dynamo", "torchvision"]
    code = f"import sys, zoo.run; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
