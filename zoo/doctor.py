"""Report active and missing components on this machine, and the command that fixes each.

Components are tried, not only listed: onnxruntime lists its CUDA provider on machines without a GPU too.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import shutil
import sys
from pathlib import Path

from zoo import runtimes

Row = tuple[str, str, str]
"""Part, state ("ok", "absent" or "broken"), detail or remedy."""

PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript")
FREE_GB = 2  # the least space for CIFAR, runs and exports


def report() -> list[Row]:
    """One row per component; torch and onnxruntime are imported in this function, not earlier."""
    return [
        ("python", "ok", f"{platform.python_version()} in {sys.prefix}"),
        *(_package(name) for name in PACKAGES),
        _onnxruntime(),
        _package("openvino"),
        *_kernels(),
        _numpy(),
        *_gpu(),
        _room(),
    ]


def _package(name: str) -> Row:
    """A package is active if it can be imported: torchvision built for another torch has a version but fails to import."""
    if not (version := runtimes.version(name)):
        return name, "absent", f"pip install {name}"
    try:
        importlib.import_module(name)
    except Exception as error:
        return name, "broken", f"{version} does not import ({_first(error)}); pip install --force-reinstall {name}"
    return name, "ok", version


def _onnxruntime() -> Row:
    found = [name for name in ("onnxruntime-gpu", "onnxruntime") if runtimes.version(name)]
    if not found:
        return "onnxruntime", "absent", "pip install onnxruntime-gpu (or onnxruntime: CPU only, and macOS)"
    if len(found) == 2:
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu"
        return (
            "onnxruntime",
            "broken",
            f"both wheels are installed and the one installed last silently replaces the other: {fix}",
        )
    try:
        runtimes.onnxruntime()
    except Exception as error:
        return "onnxruntime", "broken", f"it does not import ({_first(error)}); pip install --force-reinstall {found[0]}"
    return "onnxruntime", "ok", f"{found[0]} {runtimes.version(found[0])}"


def _kernels() -> list[Row]:
    """The active kernel of the loss, then each library that was not built with the recorded reason."""
    rows: list[Row] = []
    try:
        from zoo import ops

        served = ops.kernel()
        state = "absent" if served.startswith("PyTorch") else "ok" if served.startswith("C++") else "broken"
        rows.append(("focal loss kernel", state, served))
    except (ImportError, OSError, RuntimeError) as error:  # torch itself, or a kernel that was built for another torch
        rows.append(("focal loss kernel", "broken", f"{_first(error)}; rebuild it: pip install --no-deps -e ."))
    note = Path(__file__).with_name("_build.json")
    if not note.is_file():
        return [*rows, ("extension", "absent", "not built: pip install . (in a checkout: make lint)")]
    reasons = json.loads(note.read_text(encoding="utf-8"))["reasons"]
    return rows + [(f"extension {part}", "absent", why) for part, why in reasons.items()]


def _numpy() -> Row:
    """What computes the focal loss of numpy arrays: not what serves torch where zoo._native was built for another Python."""
    from zoo import numpy

    served = numpy.kernel()
    state = "broken" if "does not load" in served else "ok" if served.startswith("C++") else "absent"
    return "zoo.numpy", state, served


def _gpu() -> list[Row]:
    """The GPU as torch sees it and, if there is one, whether onnxruntime can run on it."""
    try:
        import torch
    except Exception:  # the row of torch has the reason
        return []
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return [("GPU", "absent", f"no CUDA device visible; {built}")]
    row: Row = ("GPU", "ok", f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    try:
        _run_on_gpu()
    except Exception as error:
        fix = "pip uninstall -y onnxruntime; pip install --force-reinstall onnxruntime-gpu"
        return [row, ("onnxruntime on the GPU", "broken", f"{_first(error)}; {fix}")]
    return [row, ("onnxruntime on the GPU", "ok", "ran a graph there")]


def _run_on_gpu() -> None:
    """Run one node with onnxruntime's CUDA provider, the silent fallback to the CPU disabled; errors are raised."""
    import numpy as np
    from onnx import TensorProto, helper

    onnxruntime = runtimes.onnxruntime()
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # torch's CUDA libraries
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError(f"onnxruntime used {session.get_providers()[0]} instead of CUDA")
    session.run(None, {"x": np.eye(4, dtype=np.float32)})


def _room() -> Row:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    state = "ok" if free >= FREE_GB else "broken"
    return "disk", state, f"{free:.1f} GB free in {Path.cwd()}" + ("" if state == "ok" else "; make room for data and runs")


def _first(error: Exception) -> str:
    """The first line of an error, or its type if it has no text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}" if text else type(error).__name__
