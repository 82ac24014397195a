"""``tools/mutate`` matches the current guards in the source; a guard that is missing is reported."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tool() -> ModuleType:
    loader = SourceFileLoader("mutate", str(ROOT / "tools" / "mutate"))
    spec = importlib.util.spec_from_loader("mutate", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_every_guard_is_where_the_tool_looks_for_it() -> None:
    mutants = tool().MUTANTS
    assert len(mutants) >= 40
    assert len({(each.file, each.text) for each in mutants}) == len(mutants)
    for each in mutants:
        assert (ROOT / each.file).read_text(encoding="utf-8").count(each.text) == 1, each
        assert (ROOT / "tests" / each.tests.split()[0]).is_file(), each
        assert each.text != each.without


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_guard_can_go_unnoticed() -> None:
    ran = subprocess.run([sys.executable, ROOT / "tools" / "mutate"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
