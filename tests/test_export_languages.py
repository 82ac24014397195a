"""The examples in docs/export.md in C++ and JavaScript compute what Python computes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import Tiny, run_of

import zoo.export
from zoo import predictor

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
SIZES = ((32, 32), (45, 61), (7, 200))
INCLUDE = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/local/include")


def example(language: str) -> str:
    """The one block of code in this language."""
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.+?)^```$", text, flags=re.M | re.S)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that takes images of any size, with images next to it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("languages")
    run = run_of(Tiny(), folder)
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.ppm")
    return zoo.export.onnx(run, folder / "model.onnx", preprocess="full", softmax=True).path


def check(command: Sequence[str], model: Path) -> None:
    """The program's output for each image, and its error for a file that is none."""
    opened = predictor.load(model)
    for number in range(len(SIZES)):
        path = model.parent / f"{number}.ppm"
        done = subprocess.run([*command, str(model), str(path)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = np.array(done.stdout.split(), np.float64)
        wanted = opened.probabilities(np.asarray(Image.open(path)))
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    (model.parent / "x.ppm").write_bytes(b"P5 1 1 255\nx")
    done = subprocess.run([*command, str(model), str(model.parent / "x.ppm")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "not a binary PPM image" in done.stderr


def test_cpp(model: Path, tmp_path: Path) -> None:
    """Against the library of the Python package; the header is that of a release, in ``ORT_INCLUDE`` or a usual place."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    places = [Path(each) for each in (os.environ.get("ORT_INCLUDE", ""), *INCLUDE) if each]
    include = next((place for place in places if (place / "onnxruntime_c_api.h").is_file()), None)
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if compiler is None or include is None or not libraries:
        pytest.skip("no compiler, or no onnxruntime_c_api.h: set ORT_INCLUDE to the include folder of onnxruntime's release")
    (tmp_path / "libonnxruntime.so").symlink_to(libraries[0])
    (tmp_path / "libonnxruntime.so.1").symlink_to(libraries[0])
    (tmp_path / "classify.cpp").write_text(example("cpp"))
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(include), "classify.cpp"]
    linked = [f"-L{tmp_path}", "-lonnxruntime", f"-Wl,-rpath,{tmp_path}", "-o", "classify"]
    done = subprocess.run([*command, *linked], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    check([str(tmp_path / "classify")], model)


def test_javascript(model: Path, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no Node.js")
    install = [
        npm,
        "install",
        "onnxruntime-node@1.30.0",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefix",
        str(tmp_path),
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    if done.returncode:
        pytest.skip(f"npm cannot install onnxruntime-node: {done.stderr.strip()[-80:]}")
    (tmp_path / "classify.mjs").write_text(example("js"))
    check([node, str(tmp_path / "classify.mjs")], model)
