"""The number of CPU threads that the environment sets; imports no torch, so that every runtime can follow it."""

from __future__ import annotations

import os

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
