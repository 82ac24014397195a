"""What is live on this machine, what is not, why, and the line that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

Row = tuple[str, str, str]
"""Part, state ("ok", "absent" or "broken"), detail or remedy."""


def report() -> list[Row]:
    """One row a part; torch and onnxruntime are imported here."""
    rows: list[Row] = [("python", "ok", platform.python_version())]
    rows += _packages()
    rows += _extension()
    rows += _gpu()
    return rows


def _packages() -> list[Row]:
    rows: list[Row] = []
    for name in ("torch", "torchvision", "timm", "onnx"):
        try:
            rows.append((name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "absent", f"pip install {name}"))
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(found) == 2:
        rows.append(
            (
                "onnxruntime",
                "broken",
                "both wheels are installed and the later one wins: pip uninstall onnxruntime onnxruntime-gpu, then install one",
            )
        )
    elif found:
        rows.append(("onnxruntime", "ok", f"{found[0]} {importlib.metadata.version(found[0])}"))
    else:
        rows.append(("onnxruntime", "absent", "pip install onnxruntime-gpu, or onnxruntime for the CPU alone"))
    return rows


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _extension() -> list[Row]:
    from zoo import ops

    try:
        rows: list[Row] = [("focal loss kernel", "ok", ops.kernel())]
    except (ImportError, OSError, RuntimeError) as error:
        rows = [("focal loss kernel", "broken", str(error).splitlines()[0])]
    built = Path(__file__).with_name("_build.json")
    reasons = (
        json.loads(built.read_text(encoding="utf-8"))["reasons"]
        if built.is_file()
        else {"all": "never built: pip install -e ."}
    )
    return rows + [(f"extension {part}" if part != "all" else "extension", "absent", why) for part, why in reasons.items()]


def _gpu() -> list[Row]:
    import torch

    if torch.cuda.is_available():
        return [("GPU", "ok", torch.cuda.get_device_name(0))]
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    return [("GPU", "absent", f"no CUDA device visible; {built}")]
