"""The CPU cores that this process may use, and the threads that the environment sets; imports no torch, so that every runtime can follow it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
VARIABLES = ("ZOO_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SLURM_CPUS_PER_TASK")
"""Variables that set the number of threads; the first that is set wins."""


def requested() -> tuple[int, str]:
    """Threads that a variable sets, and what determined them; (0, "") if none does.

    ``--threads`` (``ZOO_THREADS``) comes before ``OMP_NUM_THREADS``, ``MKL_NUM_THREADS`` and ``SLURM_CPUS_PER_TASK``. torchrun
    sets ``OMP_NUM_THREADS=1`` if the user has not set it; that value is ignored.
    """
    for name in VARIABLES:
        word = os.environ.get(name, "").partition(",")[0].strip()
        by_torchrun = name == "OMP_NUM_THREADS" and word == "1" and "TORCHELASTIC_RUN_ID" in os.environ
        if word.isdecimal() and int(word) > 0 and not by_torchrun:
            return int(word), "--threads" if name == "ZOO_THREADS" else name
    return 0, ""


def cores() -> int:
    """Cores this process may use: its affinity and, in a container, its cgroup's share."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit, period = _quota()
    return min(count, max(1, round(limit / period))) if limit > 0 else count


def _quota() -> tuple[int, int]:
    """CPU time per period that the cgroup allows, in microseconds, and the period; a limit of 0 for none (cgroup v2, then v1)."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = (CGROUP / "cpu.max").read_text().split()
        return 0 if limit == "max" else int(limit), int(period)
    with contextlib.suppress(OSError, ValueError):
        old = CGROUP / "cpu"
        return int((old / "cpu.cfs_quota_us").read_text()), int((old / "cpu.cfs_period_us").read_text())
    return 0, 1
