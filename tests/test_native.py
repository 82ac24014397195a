"""The C++ kernel without torch: as a Python module for numpy arrays, and as a CMake project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import ops_cases
import pytest
import torch

from zoo import ops

ROOT = Path(__file__).resolve().parent.parent
SETS = ("default", "avx2", "avx512")


@pytest.fixture
def native() -> Any:
    return pytest.importorskip("zoo._native", reason="the extension was not built here")


def choose(native: Any, instructions: str) -> None:
    try:
        native.capability(instructions)
    except ValueError:
        pytest.skip(f"this CPU has no {instructions}")


def problem(n: int, c: int, dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(0, 5, (n, c)).astype(dtype), draw.integers(c, size=n), draw.uniform(0.5, 2, c).astype(dtype)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "c"), [(7, 10), (300, 33), (5, 2000)])
def test_numpy_arrays_give_the_ops_numbers(native: Any, instructions: str, dtype: type, n: int, c: int) -> None:
    before = native.capability()
    choose(native, instructions)
    try:
        logits, target, weight = problem(n, c, dtype)
        target[2] = -100
        grad, p = np.full_like(logits, np.nan), np.full(n, np.nan, dtype)
        settings = {"gamma": 1.5, "label_smoothing": 0.1, "reduction": "weighted_mean", "scale": 2.0}
        loss, factor = native.focal_loss(logits, target, weight=weight, grad=grad, p=p, **settings)
    finally:
        native.capability(before)
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    true = ops.focal_loss_with_stats(leaf, torch.tensor(target), weight=torch.tensor(weight), **settings)
    true.loss.backward()
    close = {"rtol": 1e-5 if dtype is np.float32 else 1e-12, "atol": 1e-7 if dtype is np.float32 else 1e-15}
    np.testing.assert_allclose(loss, true.loss.item(), **close)
    np.testing.assert_allclose(factor, true.factor.item(), **close)
    np.testing.assert_allclose(p, true.p, **close)
    np.testing.assert_allclose(grad, leaf.grad, **close)


def test_strided_logits(native: Any) -> None:
    logits, target, _ = problem(40, 6, np.float32)
    wide = np.zeros((40, 12), np.float32)
    wide[:, ::2] = logits
    assert native.focal_loss(wide[:, ::2], target) == native.focal_loss(logits, target)
    packed = np.zeros(40, np.dtype([("tag", np.uint16), ("row", np.float32, (6,))]))
    with pytest.raises(ValueError, match="strides of whole elements"):
        native.focal_loss(packed["row"], target)


@pytest.mark.parametrize("label", [-1, 10, 2**63 - 1])
def test_a_bad_label_is_an_index_error_and_nothing_is_written(native: Any, label: int) -> None:
    logits, target, _ = problem(100, 10, np.float32)
    target[77] = label
    grad = np.full_like(logits, 9)
    with pytest.raises(IndexError, match=rf"target\[77\]={label} is out of range for 10 classes"):
        native.focal_loss(logits, target, grad=grad)
    assert (grad == 9).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"logits": np.zeros((4, 3), np.int32)}, "float32, float64 or float16"),
        ({"logits": np.zeros(4, np.float32)}, r"\(N, C\)"),
        ({"target": np.zeros(5, np.int64)}, r"target of labels must be \(N,\)"),
        ({"target": np.zeros(4, np.complex64)}, "target must be int64 labels, or shares"),
        ({"target": np.zeros((4, 4), np.float32)}, r"target of shares must be \(N, C\)"),
        ({"target": np.zeros((4, 3))}, "shares must be of the type of logits"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"reduction": "avg"}, "reduction"),
        ({"reduction": "none"}, "reduction none needs rows"),
        ({"rows": np.zeros(4)}, "rows must"),
        ({"weight": np.ones(4, np.float32)}, "weight"),
        ({"grad": np.zeros((4, 3))}, "grad"),
        ({"p": np.zeros(3, np.float32)}, "p must"),
    ],
)
def test_bad_arguments(native: Any, change: dict[str, Any], says: str) -> None:
    given = {"logits": np.zeros((4, 3), np.float32), "target": np.zeros(4, np.int64)} | change
    with pytest.raises(ValueError, match=says):
        native.focal_loss(given.pop("logits"), given.pop("target"), **given)


def test_torch_is_not_needed(native: Any) -> None:
    code = (
        "import sys, numpy as np; from zoo import _native;"
        "print(round(_native.focal_loss(np.zeros((2, 2)), np.array([0, 1]))[0], 6), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.split() == ["0.173287", "False"], ran.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_benchmarks_kernel_is_the_ops(dtype: torch.dtype) -> None:
    if ops._C is None:
        pytest.skip("the extension was not built here")
    draw = torch.Generator().manual_seed(0)
    logits, target = torch.randn(500, 10, generator=draw).to(dtype), torch.randint(10, (500,), generator=draw)
    weight, grad = torch.rand(10, generator=draw), torch.empty_like(logits)
    loss = torch.empty(())
    settings = (2.0, -100, 0.0, "mean", 1.0)
    assert ops._C.run(logits, target, weight, grad, loss, *settings) == -1
    leaf = logits.clone().requires_grad_()
    true = ops.focal_loss(leaf, target, weight=weight)
    true.backward()
    assert torch.equal(loss, true)
    assert torch.equal(grad, leaf.grad)
    target[3] = 10
    assert ops._C.run(logits, target, weight, grad, loss, *settings) == 3
    with pytest.raises(TypeError, match="10 arguments, not 5"):
        ops._C.run(*settings)


def ctest(place: Path, *options: str, leave: str = "^$") -> dict[str, str]:
    """Build the CMake project in ``place`` and run its tests except those that match ``leave``; Passed or Skipped by name."""
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(place), *options],
        ["cmake", "--build", str(place), "--parallel", "2"],
        ["ctest", "--test-dir", str(place), "--output-on-failure", "-E", leave],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=700)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return dict(re.findall(r"Test +#\d+: (\w+) \.+ *\**(Passed|Skipped)", ran.stdout))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_cmake_builds_the_kernel_and_ctest_passes(tmp_path: Path) -> None:
    """Each instruction set plain and under ASan and UBSan, and the CUDA kernels' text on the CPU."""
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("no cmake or no C++ compiler")
    results = ctest(tmp_path / "b")
    assert set(results) == {"cuda_on_cpu", *(f"{program}_{each}" for program in ("rows", "rows_sanitized") for each in SETS)}
    assert results["cuda_on_cpu"] == "Passed"
    here = {"default", *(each for each in SETS if each in ops_cases.SETS)}
    assert all(results[f"{program}_{each}"] == "Passed" for program in ("rows", "rows_sanitized") for each in here)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_arm64_builds_without_a_warning_and_passes_under_qemu(tmp_path: Path) -> None:
    """The compiler's vectors without an x86 instruction set: compiled to NEON, which every arm64 has, not to SVE."""
    if missing := [
        name
        for name in ("cmake", "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "qemu-aarch64")
        if not shutil.which(name)
    ]:
        pytest.skip(f"no {', '.join(missing)}")
    results = ctest(
        tmp_path / "b",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
        "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu",
        leave="cuda_on_cpu",
    )
    passed = {name for name, how in results.items() if how == "Passed"}
    assert passed == {"rows_default", "rows_sanitized_default"} and len(results) == 6
    library = str(tmp_path / "b" / "libfocal_loss.a")
    text = subprocess.run(["aarch64-linux-gnu-objdump", "-d", library], capture_output=True, text=True, check=True).stdout
    assert re.search(r"fmla\s+v\d+\.4s", text) and not re.search(r"\bz\d+\.[bhsd]\b", text)


@pytest.mark.slow
def test_the_cuda_kernels_compile_and_stay_in_registers(tmp_path: Path) -> None:
    """For sm_80 (A100) and sm_90 (H100), without a GPU; a kernel that spills would read its row from memory again."""
    if not (nvcc := shutil.which("nvcc")):
        pytest.skip("no nvcc here")
    from torch.utils.cpp_extension import include_paths

    folders = [ROOT / "csrc", sysconfig.get_paths()["include"], *include_paths("cuda")]
    targets = [word for number in (80, 90) for word in ("-gencode", f"arch=compute_{number},code=sm_{number}")]
    flags = ["-O3", "-std=c++17", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Xptxas", "-v"]
    command = [nvcc, "-c", str(ROOT / "csrc" / "focal_loss_cuda.cu"), "-o", str(tmp_path / "kernels.o"), *flags, *targets]
    ran = subprocess.run([*command, *(f"-I{folder}" for folder in folders)], capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    built = {number: set(re.findall(rf"Compiling entry function '(\w+)' for 'sm_{number}'", ran.stderr)) for number in (80, 90)}
    assert built[80] == built[90]
    assert all(any(name in kernel for kernel in built[80]) for name in ("few_classes", "held_row", "long_row", "finish"))
    assert set(re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", ran.stderr)) == {("0", "0")}
