"""Device, precision, threads and memory allocation of a run on this machine; each choice with the line that reports it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

import zoo
from zoo import runtimes, thread_settings
from zoo.console import print_line
from zoo.errors import UsageError
from zoo.thread_settings import cores as cores

# glibc's mallopt keys (malloc.h)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
C = TypeVar("C", bound=Callable[..., Any])


def threads(processes: int = 1) -> tuple[int, str]:
    """Threads of one of ``processes`` on this machine, and what determined it: an option, a variable (:mod:`zoo.thread_settings`) or the cores."""
    number, why = thread_settings.requested()
    return (number, why) if number else (max(1, cores() // processes), "cores")


def use_threads(processes: int = 1) -> int:
    """Set torch's threads to :func:`threads`, print what determined the number unless the cores did, and return it."""
    number, why = threads(processes)
    torch.set_num_threads(number)
    if why != "cores":
        print_line(f"threads  {number} ({why})")
    return number


def device(name: str) -> torch.device:
    """The device for ``auto`` (cuda, else cpu), ``cpu``, ``cuda``, ``cuda:N`` or another that torch can use, such as ``mps``.

    Raises:
        UsageError: an unknown or missing device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device {name!r}; use auto, cpu, cuda, cuda:N, or another that torch has, e.g. mps") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no device {name!r} (CUDA devices found: {torch.cuda.device_count()}); use device=cpu or device=auto")
    if wanted.type == "meta":
        raise UsageError("device 'meta' cannot compute; use device=cpu or device=auto")
    try:
        torch.ones(1, device=wanted).add(1).cpu()
    except Exception as error:  # each backend raises its own types if torch was built without it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:80]
        raise UsageError(f"device {name!r} cannot be used ({reason}); use device=cpu or device=auto") from error
    return wanted


def precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 if the hardware supports it natively, else fp32; fp16 needs a GPU."""
    if name == "fp16" and device.type != "cuda":
        raise UsageError("precision = 'fp16' needs a GPU for its gradient scaler; use precision=bf16 or fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if path.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def saturates() -> bool:
    """Whether this is an x86 CPU without VNNI: onnxruntime adds two products of 8 bit numbers in 16 bits there, which saturates."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if path.is_file() else ""
    return platform.machine().lower() in ("x86_64", "amd64") and "avx2" in flags and "vnni" not in flags


def compiled(function: C, **options: Any) -> C:
    """``torch.compile`` for fixed shapes; PyTorch's warning that nvcc is installed without a GPU is suppressed."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return torch.compile(function, dynamic=False, **options)  # type: ignore[return-value]


def keep_memory() -> str:
    """Tell glibc to keep freed blocks instead of returning them to the kernel after each step; returns a description of the setting.

    Measured: 14,500 page faults per step become about 140, and a step is 1.2 to 1.45 times as fast on two cores.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "system"
    libc = ctypes.CDLL(None)
    done = [
        libc.mallopt(key, value) for key, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    ]
    return "glibc, freed blocks kept" if all(done) else "system"


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Restrict torch to operations with bit-identical results; others raise a RuntimeError."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS on first use
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each module back into its own mode afterwards: the caller may be training it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """torch's initial float type, device and gradient mode, which a notebook or program that calls zoo may have changed.

    Afterwards the program has its own again, and its random state and number of threads.
    """
    dtype, moved, threads = torch.get_default_dtype(), torch.get_default_device().type != "cpu", torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # a default device intercepts every operation, so it is set only where it differs
    place = torch.device("cpu") if moved else contextlib.nullcontext()
    torch.set_default_dtype(torch.float32)
    try:
        with place, torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def cpu_name() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout, with ``+`` if files are modified; empty outside a checkout."""
    where = Path(zoo.__file__).parent.parent
    if not (where / ".git").exists():
        return ""
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=where, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip()


def facts(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for ``env.json`` and the rows of a benchmark."""
    return {
        "zoo": zoo.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": runtimes.version("onnxruntime-gpu") or runtimes.version("onnxruntime"),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }
