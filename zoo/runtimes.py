"""onnxruntime, imported so that it reports nothing to its maker (imports no torch)."""

from __future__ import annotations

import importlib
import os
from typing import Any

TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""onnxruntime reads it when it is imported. From version 1.31 on, it otherwise writes a device id and a queue of events to
``~/.cache/Microsoft`` and connects to mobile.events.data.microsoft.com, on Linux too."""


def disable_telemetry() -> None:
    """Switch onnxruntime's telemetry off in this process and its children, unless the user has set the variable."""
    os.environ.setdefault(TELEMETRY, "1")


def version(package: str) -> str:
    """The installed version of a package, or an empty string."""
    import importlib.metadata  # slow to import

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def onnxruntime(part: str = "") -> Any:
    """The package, or a part of it such as ``.quantization``, without telemetry.

    Raises:
        ImportError: it is not installed or broken.
    """
    disable_telemetry()
    return importlib.import_module(f"onnxruntime{part}")
