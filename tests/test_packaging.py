"""Content of the packages, fallbacks of the build, and messages about missing parts. No test needs a network."""

from __future__ import annotations

import email
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import zoo

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"_C", "_C_cuda", "_native"}
JUNK = shutil.ignore_patterns("*.so", "*.pyc", "__pycache__", "_build.json", "*.tmp")
PYBIND = '#include <pybind11/pybind11.h>\nPYBIND11_MODULE(_native, m) { m.def("answer", [] { return 42; }); }\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tree, in a path with a space and a letter outside ASCII."""
    copy = tmp_path / "a bé" / "zoo"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=lambda folder, names: _ignored(Path(folder), names))
    return copy


def _ignored(folder: Path, names: list[str]) -> set[str]:
    big = {name for name in names if name.startswith((".venv", ".git", ".mypy", ".hyp")) or name in ("runs", "build", "dist")}
    return JUNK(str(folder), names) | (big if folder == ROOT else set())


def build(checkout: Path, *words: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """``setup.py build`` into a folder next to the checkout."""
    out = checkout.parent / "out"
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(out), *words]
    return run(command, checkout, **environment), out


def run(command: list[str], where: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with only these switches of the build."""
    clean = {key: value for key, value in os.environ.items() if key not in ("ZOO_EXT", "ZOO_CUDA", "CXX", "CC", "PYTHONPATH")}
    return subprocess.run(command, cwd=where, env=clean | environment, capture_output=True, text=True, timeout=500)


def note(out: Path) -> dict[str, str]:
    """Reasons for skipped libraries."""
    return json.loads((out / "zoo" / "_build.json").read_text(encoding="utf-8"))["reasons"]


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def test_every_package_is_listed() -> None:
    listed = project()["tool"]["setuptools"]
    folders = {
        path.parent for path in [*ROOT.glob("zoo/**/__init__.py"), *ROOT.glob("export/**/*.py"), *ROOT.glob("bench/**/*.py")]
    }
    found = {
        ".".join(path.relative_to(ROOT).parts)
        for path in folders
        if path.relative_to(ROOT).parts[1:2] not in (("export",), ("bench",))
    }
    found = {name if name.startswith("zoo") else f"zoo.{name}" for name in found}
    assert len(found) > 5
    assert found <= set(listed["packages"])


def test_the_pins_fit_the_floors() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins[pin.name] = str(pin.specifier).removeprefix("==")
    data = project()["project"]
    extras = data["optional-dependencies"]
    wanted = [Requirement(text) for text in [*data["dependencies"], *extras["runtime"], *extras["test"], *extras["dev"]]]
    wanted = [each for each in wanted if each.name != data["name"]]
    assert {each.name for each in wanted} <= set(pins)
    assert [each for each in wanted if not each.specifier.contains(pins[each.name], prereleases=True)] == []
    assert not [each for each in wanted if "<" in str(each.specifier)], "no upper caps"
    assert "onnxruntime" not in {each.name for each in wanted}, "never beside onnxruntime-gpu"


def test_the_source_distribution_has_everything(checkout: Path) -> None:
    made = run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(checkout.parent)], checkout)
    assert made.returncode == 0, made.stderr
    with tarfile.open(next(checkout.parent.glob("*.tar.gz"))) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
        member = next(name for name in tar.getnames() if name.count("/") == 1 and name.endswith("/PKG-INFO"))
        facts = email.message_from_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    sources = [path for folder in ("zoo", "export", "bench", "csrc") for path in (ROOT / folder).rglob("*")]
    kinds = (".py", ".toml", ".cpp", ".cu", ".h", ".txt")
    wanted = {str(path.relative_to(ROOT)) for path in sources if path.suffix in kinds and "__pycache__" not in path.parts}
    wanted = {name for name in wanted if not name.startswith(("zoo/export/", "zoo/bench/"))} | {"LICENSE", "zoo/py.typed"}
    wanted |= {
        name
        for name in ("CMakeLists.txt", "Makefile", "constraints.txt", "mkdocs.yml", "docs/index.md", "tools/setup")
        if (ROOT / name).exists()
    }
    assert "csrc/sources.txt" in wanted
    assert wanted - packed == set()
    assert not [name for name in packed if name.endswith((".so", "_build.json"))]
    assert facts["Version"] == zoo.__version__
    assert facts["Description-Content-Type"] == "text/markdown"
    shown = facts.get_payload()
    assert "# zoo" in shown and "What makes it different" in shown
    assert re.findall(r"\]\((?!https?:)[^)]*\)", shown) == [], "links that a package index cannot resolve"


def test_one_version_everywhere() -> None:
    assert "version" not in project()["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", zoo.__version__)
    assert re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)[1] == zoo.__version__  # type: ignore[index]
    assert re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1] == zoo.__version__  # type: ignore[index]


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ZOO_EXT": "off"}, "switched off by ZOO_EXT=off"),
        ({"CXX": "/nowhere/g++"}, "no C++ compiler (/nowhere/g++)"),
        ({"CXX": "false"}, "cannot compile C++17"),
    ],
)
def test_without_a_compiler_pure_python_is_built(checkout: Path, environment: dict[str, str], says: str) -> None:
    stale = checkout.parent / "out" / "zoo" / "_C.abi3.so"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an older build")
    built, out = build(checkout, **environment)
    assert built.returncode == 0
    assert [line for line in built.stderr.splitlines() if line.startswith("zoo:")] == [
        f"zoo: without _C, _C_cuda, _native: {note(out)['_C']}"
    ]
    assert note(out).keys() == PARTS
    assert says in note(out)["_C"]
    assert (out / "zoo" / "export" / "__init__.py").is_file()
    assert list(out.rglob("*.so")) == []


def test_a_required_extension_is_an_error(checkout: Path) -> None:
    built, out = build(checkout, CXX="/nowhere/g++", ZOO_EXT="require")
    assert built.returncode != 0
    assert "ZOO_EXT=require, but _C: no C++ compiler (/nowhere/g++)" in built.stderr
    assert not (out / "zoo" / "_build.json").exists()


def test_source_that_does_not_compile_is_left_out(checkout: Path) -> None:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    (checkout / "csrc" / "sources.txt").write_text("_native: csrc/broken.cpp\n")
    (checkout / "csrc" / "broken.cpp").write_text("this is not C++\n")
    built, out = build(checkout)
    assert built.returncode == 0
    assert "did not compile" in note(out)["_native"]
    assert "source file missing" in note(out)["_C"]
    required, _ = build(checkout, ZOO_EXT="require")
    assert required.returncode != 0


@pytest.mark.slow
def test_two_builds_at_once(checkout: Path) -> None:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    (checkout / "csrc" / "sources.txt").write_text("_native: csrc/tiny.cpp\n")
    (checkout / "csrc" / "tiny.cpp").write_text(PYBIND, encoding="utf-8")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZOO_")}
    both = [subprocess.Popen(command, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [each.communicate(timeout=300)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], errors
    loaded = run([sys.executable, "-c", "import zoo._native; print(zoo._native.answer())"], checkout)
    assert loaded.stdout == "42\n"
    assert list((checkout / "zoo").glob(".*.tmp")) == []


def tags(wheel: Path) -> list[str]:
    """File names in a wheel's record; checks the name of the wheel."""
    with zipfile.ZipFile(wheel) as packed:
        record = next(name for name in packed.namelist() if name.endswith(".dist-info/WHEEL"))
        found = re.findall(r"^Tag: (.+)$", packed.read(record).decode(), re.M)
    assert len(found) == 1 and wheel.name.endswith(f"-{found[0]}.whl")
    return found[0].split("-")


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
def test_one_wheel_serves_every_python(checkout: Path, compiled: bool) -> None:
    if compiled and not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    (checkout / "csrc" / "sources.txt").write_text("_native: csrc/tiny.cpp\n")
    (checkout / "csrc" / "tiny.cpp").write_text(PYBIND, encoding="utf-8")
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(checkout.parent)]
    made = run(command, checkout, ZOO_EXT="auto" if compiled else "off")
    assert made.returncode == 0, made.stderr
    wheel = next(checkout.parent.glob("*.whl"))
    python, abi, platform = tags(wheel)
    if not compiled:
        assert (python, abi, platform) == ("py3", "none", "any")
        return
    oldest = Requirement(f"python{project()['project']['requires-python']}").specifier
    assert (python, abi) == ("cp311", "abi3") and str(oldest) == ">=3.11" and platform != "any"
    with zipfile.ZipFile(wheel) as packed:
        libraries = [name for name in packed.namelist() if name.endswith(".so")]
    assert libraries == [f"zoo/_native{sysconfig.get_config_var('EXT_SUFFIX')}"]  # other tools do not use it


@pytest.mark.slow
def test_the_wheel_from_the_source_distribution_works(checkout: Path) -> None:
    place = checkout.parent
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--skip-dependency-check",
        "--outdir",
        str(place),
        str(checkout),
    ]
    made = run(command, place, TORCH_CUDA_ARCH_LIST="9.0")  # one architecture, as nvcc takes minutes for each
    assert made.returncode == 0, made.stdout + made.stderr
    if importlib.util.find_spec("twine"):
        checked = run(
            [sys.executable, "-m", "twine", "check", "--strict", *map(str, [*place.glob("*.whl"), *place.glob("*.tar.gz")])],
            place,
        )
        assert checked.returncode == 0, checked.stdout
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(place / "installed")
    assert {
        "zoo/export/onnx_fp32.py",
        "zoo/bench/_timing.py",
        "zoo/recipes/demo.toml",
        "zoo/_build.json",
        "zoo/py.typed",
    } <= names
    files = {name for name in names if name.endswith(".so")}
    own = {f"zoo/{part}.abi3.so" for part in ("_C", "_C_cuda")} | {f"zoo/_native{sysconfig.get_config_var('EXT_SUFFIX')}"}
    assert files <= own, "each loads in every Python, or has the name of this one"
    assert tags(next(place.glob("*.whl")))[:2] == (["cp311", "abi3"] if files else ["py3", "none"])
    libraries = {Path(name).name.split(".")[0] for name in files}
    assert libraries | note(place / "installed").keys() == PARTS
    assert not libraries & note(place / "installed").keys()
    code = "import zoo; print(zoo.__file__); import zoo.ops; print(zoo.ops.kernel())"
    used = run([sys.executable, "-c", code], place / "installed", PYTHONPATH=str(place / "installed"))
    assert used.returncode == 0, used.stderr
    where, kernel = used.stdout.splitlines()
    assert Path(where).is_relative_to(place / "installed")
    assert kernel.startswith("C++" if "_C" in libraries else "PyTorch")
    (place / "script.py").write_text(USER)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports",
        "silent",
        "--cache-dir",
        str(place / "mypy"),
        "script.py",
    ]
    checked = run(command, place, MYPYPATH=str(place / "installed"))
    assert checked.returncode == 0, checked.stdout


USER = """
from pathlib import Path

import numpy as np
import torch

import zoo
from zoo.losses import FocalLoss


def show(rows: list[dict[str, object]]) -> None:
    print(len(rows))


loss = FocalLoss(gamma=2.0, weight=zoo.effective_weights([500, 50, 5], beta=0.999))
counts: np.ndarray = zoo.class_counts([0, 1, 1], 2)
value: torch.Tensor = loss(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
model: torch.nn.Module = zoo.create_model("resnet20", classes=3)
made: zoo.run.Run = zoo.train(Path("recipe.toml"), loss=loss, on_epoch=show, out=Path("run"), epochs=1)
receipt = zoo.export.onnx(made)
print(receipt.path, float(value), zoo.load("run").model(torch.zeros(1, 3, 32, 32)).argmax(1))
"""


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("pythons", "says"),
    [
        ({}, "needs Python 3.11 or newer, found none"),
        ({"python3": '[ "$1" = --version ] && echo Python 3.9.2 && exit; exit 1'}, "needs Python 3.11 or newer, found Python 3.9.2"),
        # a pyenv shim of an inactive version comes first on PATH and fails
        ({"python3.13": "exit 127", "python3": 'case "$*" in --version) echo Python 3.12.3;; *venv*) exit 1;; esac'}, "Python 3.12.3 has no venv module"),
    ],
)  # fmt: skip
def test_set_up_says_at_once_what_is_missing(checkout: Path, pythons: dict[str, str], says: str) -> None:
    tools = checkout.parent / "bin"
    tools.mkdir()
    for name in ("bash", "make", "cat", "dirname", "basename", "sed", "head", "rm"):
        if not (found := shutil.which(name)):
            pytest.skip(f"no {name}")
        (tools / name).symlink_to(found)
    for name, text in pythons.items():
        script(tools / name, text)
    start = time.monotonic()
    made = run(["make", "test"], checkout, PATH=str(tools), SHELL=str(tools / "bash"))
    assert made.returncode != 0
    assert time.monotonic() - start < 1
    lines = [line for line in made.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert says in lines[0]
    assert not (checkout / ".venv").exists()


def test_the_gpu_script_goes_on_after_a_failure_and_tells_it(tmp_path: Path) -> None:
    script(tmp_path / "python", 'case "$*" in *"-m gpu"*) echo 1 failed; exit 3;; *) echo "did $*";; esac')
    script(tmp_path / "compute-sanitizer", 'echo "$2 found nothing"')
    place = {
        "OUT": str(tmp_path / "out"),
        "PYTHON": str(tmp_path / "python"),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    gpu = [str(ROOT / "tools" / "gpu")]
    ran = run(gpu, tmp_path, **place)
    rows = [line.split(maxsplit=3) for line in (tmp_path / "out" / "summary.txt").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ["wheels", "build", "tests", "memcheck", "racecheck", "loss", "inference"]
    assert [row[0] for row in rows if row[1] != "ok"] == ["tests"]
    assert ran.returncode == 1 and "exit 3" in ran.stdout and "racecheck found nothing" in ran.stdout
    assert run([*gpu, "build", "loss"], tmp_path, **place).returncode == 0
    for words, environment, says in (
        (["lunch"], {}, "no stage lunch"),
        ([], {"PYTHON": "false"}, "no torch with a CUDA device"),
    ):
        ran = run([*gpu, *words], tmp_path, **place | environment)
        assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1) and says in ran.stderr
