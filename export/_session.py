"""Open onnxruntime sessions with all optimisations, the available cores and no silent change of device.

Imports no torch, so that ``zoo predict --onnx`` needs only onnxruntime, numpy and Pillow.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo import runtimes, thread_settings
from zoo.errors import DisagreeError, FileError, UsageError, ZooError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(
    model: Path | bytes,
    device: str = "cpu",
    *,
    threads: int = 0,
    optimise: bool = True,
    entries: Mapping[str, str] | None = None,
) -> Any:
    """An ``InferenceSession`` on ``device`` ("cpu", "cuda" or "cuda:1") without a fallback.

    ``threads`` 0: as many as ``--threads`` or a variable sets (:mod:`zoo.thread_settings`), else all available cores.

    TF32 is off on the GPU, so that float32 is float32. ``optimise`` False disables graph optimisations. ``entries`` are
    onnxruntime's session configuration entries, e.g. ``{"session.intra_op.allow_spinning": "0"}``.

    Raises:
        UsageError: onnxruntime is missing, or cannot run on ``device`` (it would fall back to the CPU silently).
        FileError: the file is missing or not a model that it can run.
    """
    try:
        onnxruntime = runtimes.onnxruntime()
    except ImportError as error:
        if error.name == "onnxruntime" and isinstance(error, ModuleNotFoundError):
            raise UsageError(
                "onnxruntime is not installed; install it: pip install onnxruntime-gpu (or onnxruntime)"
            ) from error
        raise UsageError(f"onnxruntime cannot be imported ({reason(error)}); install it again") from error
    if isinstance(model, Path) and not model.is_file():
        raise FileError(f"no model file ({model.absolute()}); make one with: zoo export --onnx")
    kind, _, number = device.partition(":")
    level = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or thread_settings.requested()[0] or thread_settings.cores()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    source = model if isinstance(model, bytes) else str(model)
    if kind == "cpu":
        return _open(onnxruntime, source, options, [PROVIDERS["cpu"]])
    live = onnxruntime.get_available_providers()
    wanted = PROVIDERS.get(kind)
    if wanted is None or wanted not in live:
        raise UsageError(f"onnxruntime has no device {device!r} (available providers: {', '.join(live)}); use --device cpu")
    _open(onnxruntime, source, options, [PROVIDERS["cpu"]])  # a damaged file is reported as such, not as a missing GPU
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    where = {"device_id": int(number or 0), "use_tf32": 0}
    try:
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # it prints missing libraries
                onnxruntime.preload_dlls()
        # without enable_fallback=0 a failure is printed to stdout and the CPU taken
        session = onnxruntime.InferenceSession(source, options, providers=[(wanted, where)], enable_fallback=0)
        first = session.get_providers()[0]
    except Exception as error:  # onnxruntime raises its own types, RuntimeError and ValueError
        first = str(error).strip().splitlines()[0][:60] if str(error).strip() else type(error).__name__
    if first != wanted:
        raise UsageError(f"onnxruntime cannot start {wanted} ({first}; available: {PROVIDERS['cpu']}); use --device cpu")
    return session


def _open(onnxruntime: Any, source: str | bytes, options: Any, providers: list[str]) -> Any:
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # one boundary around the parser: it raises many types
        why = reason(error)
        name = source if isinstance(source, str) else "graph in memory"
        raise FileError(f"not a model that onnxruntime can run ({name}, {why}); export it again") from error


@contextlib.contextmanager
def boundary(where: Path | str, advice: str = "export it again") -> Iterator[None]:
    """Context for running a model: converts errors of onnxruntime to FileError; other errors pass.

    Raises:
        FileError: the model ``where`` does not run.
    """
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        if not _of_runtime(error) or "allocate memory" in str(error):
            raise
        raise FileError(f"model does not run ({where}, {reason(error)}); {advice}") from error


@contextlib.contextmanager
def first_run(graph: Path | str) -> Iterator[None]:
    """Context for the first run of an exported graph: DisagreeError, with onnxruntime's reason, if it cannot run."""
    try:
        with boundary(graph):
            yield
    except FileError as error:
        why = reason(error.__cause__ or error)
        raise DisagreeError(f"exported graph cannot run ({why}); nothing published") from error


def _of_runtime(error: Exception) -> bool:
    """Whether onnxruntime raised it: its own types, or an ordinary one (for text that is not UTF-8) from its files."""
    if type(error).__module__.startswith("onnxruntime"):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "onnxruntime" in Path(trace.tb_frame.f_code.co_filename).parts


FRAMING = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:\s*|Non-zero status code returned while running |Name:'' "
    r"|\S+\.(?:cc|h|cpp|cu):\d+ (?:[^()]*::[^()]*\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])? )?| Please fix either the inputs/outputs or the model\."
)
"""What onnxruntime's messages have around the reason: codes, the file's path, and place and signature of its C++ function."""


def reason(error: BaseException) -> str:
    """An error's text in one short printable line, or its type."""
    text = FRAMING.sub("", " ".join(str(error).split())[:2000])[:120].strip()
    return (text if text.isprintable() else text.encode("unicode_escape").decode("ascii")) or type(error).__name__
