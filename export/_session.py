"""onnxruntime sessions as zoo opens them: every optimisation, the cores really there, no silent change of provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import host
from zoo.spec import FileError, UsageError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(path: Path | bytes, device: str = "cpu", threads: int | None = None) -> Any:
    """An InferenceSession on exactly this device.

    Raises:
        UsageError: the device's provider isn't live (onnxruntime alone would fall back to the CPU without a word), or
            onnxruntime isn't installed. FileError: the file cannot be loaded.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UsageError(
            "onnxruntime is not installed; install it with: pip install onnxruntime-gpu (or onnxruntime)"
        ) from error
    wanted = PROVIDERS[device]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or host.cores()
    options.log_severity_level = 3
    if device != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if wanted not in ort.get_available_providers():
        raise UsageError(
            f"onnxruntime has no {wanted} (there are: {', '.join(ort.get_available_providers())}); choose another --device"
        )
    try:
        session = ort.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=[wanted])
    except Exception as error:  # one boundary around the runtime: its errors share no type
        if device != "cpu":
            raise UsageError(
                f"onnxruntime cannot start {wanted} ({str(error).splitlines()[0][:90]}); choose another --device"
            ) from error
        raise FileError(
            f"onnxruntime cannot load the model ({path if isinstance(path, Path) else 'graph'}, {str(error)[:90]!r}); export it again"
        ) from error
    if session.get_providers()[0] != wanted:
        raise UsageError(f"onnxruntime fell back to {session.get_providers()[0]} from {wanted}; choose another --device")
    return session
