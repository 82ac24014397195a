"""onnxruntime is imported in one place, without telemetry, also by child processes."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from zoo import runtimes

FEATURES = """
import importlib, os, torch
from zoo.training import feature_runtimes
plain = importlib.import_module


def seen(name, *more):
    assert name != "onnxruntime" or "ORT_DISABLE_TELEMETRY" in os.environ, "it reads the variable when it is imported"
    return plain(name, *more)


importlib.import_module = seen
feature_runtimes._graph = lambda *given: b""
feature_runtimes._onnxruntime = lambda graph: None
feature_runtimes.runner("onnxruntime", torch.nn.Identity(), "", torch.zeros(2, 3, 4, 4))
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
CODE = "from zoo import runtimes; runtimes.onnxruntime(); import os; print(os.environ[runtimes.TELEMETRY])"


def importers(name: str) -> set[str]:
    """Files of zoo that import a package by a statement or by its name in a string."""
    found = set()
    for folder in ("zoo", "export", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                words = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                words += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
                    words.append(ast.unparse(node.args[0]).lstrip("f").strip("'\""))
                if any(word.partition(".")[0].partition("{")[0] == name for word in words):
                    found.add(path.relative_to(ROOT).as_posix())
    return found


def test_one_file_imports_onnxruntime() -> None:
    assert importers("onnxruntime") == {"zoo/runtimes.py"}
    assert len(importers("torch")) > 20, "the walk finds imports"


@pytest.mark.parametrize("code", [CODE, FEATURES])
@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({runtimes.TELEMETRY: "0"}, "0")])
def test_telemetry_is_off_unless_the_user_set_it(tmp_path: Path, given: dict[str, str], expected: str, code: str) -> None:
    kept = {key: value for key, value in os.environ.items() if key not in (runtimes.TELEMETRY, "XDG_CACHE_HOME")}
    env = kept | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)} | given
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout.strip()) == (0, expected), ran.stderr
    if expected == "1":
        assert not list(tmp_path.rglob("*onnxruntime*")), "a device id or a queue of events"
