"""Memory of a computation: of this process on the CPU, of the device on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from zoo.errors import DiskError

T = TypeVar("T")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def used(work: Callable[[], T], device: torch.device | None = None) -> tuple[T, float, float]:
    """The result of ``work``, and by how many MB (of 1e6 bytes) memory rose at its peak and afterwards; nan where unknown.

    On the CPU these are resident pages, after freed blocks are returned to the system; the kernel records the peak and resets
    it on request (proc(5), clear_refs). On a GPU no peak over all libraries is available: the memory afterwards is returned
    for both, which is correct for libraries that keep their allocations, such as PyTorch and onnxruntime.
    """
    if device is not None and device.type == "cuda":
        return _on_gpu(work, device)
    _give_back()
    before = _mb("VmRSS") if _reset() else float("nan")
    result = work()
    peak = _mb("VmHWM")
    return result, max(0.0, peak - before), max(0.0, _mb("VmRSS") - before)


@contextlib.contextmanager
def enough_for(batch: int) -> Iterator[None]:
    """Converts out-of-memory errors of numpy, PyTorch and onnxruntime to DiskError."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)):
            raise
        raise DiskError(f"out of memory (batch {batch:,}); use smaller batches, e.g. --batches 1,8,64") from error


def _on_gpu(work: Callable[[], T], device: torch.device) -> tuple[T, float, float]:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info(device)[0]
    result = work()
    torch.cuda.synchronize(device)
    taken = max(0.0, (before - torch.cuda.mem_get_info(device)[0]) / 1e6)
    return result, taken, taken


def _give_back() -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _reset() -> bool:
    try:
        _RESET.write_text("5")
    except OSError:  # another system, or not allowed
        return False
    return True


def _mb(field: str) -> float:
    if not _STATUS.is_file():
        return float("nan")
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")
