"""One worker under load: runs its session repeatedly and reports the time of each call.

Imports no torch, so that a process starts in a fraction of a second.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from zoo.export import _feed, _session


def opened(path: Path, threads: int) -> Any:
    """A session for one of several workers, whose threads do not spin: that would slow the others."""
    return _session.open_session(path, threads=threads, entries={"session.intra_op.allow_spinning": "0"})


def load(session: Any, images: np.ndarray, seconds: float) -> np.ndarray:
    """Nanoseconds of each call, one after the other until ``seconds`` are over."""
    feed, wanted = {session.get_inputs()[0].name: images}, [_feed.output(session, Path())]
    times, clock = [], time.perf_counter_ns
    now = clock()
    end = now + seconds * 1e9
    while now < end:
        session.run(wanted, feed)
        before, now = now, clock()
        times.append(now - before)
    return np.array(times, float)


def main() -> None:
    """``_worker MODEL THREADS IMAGES.npy``: prints ``ready``; answers each line with seconds on stdin by a line of latencies."""
    session, images = opened(Path(sys.argv[1]), int(sys.argv[2])), np.load(sys.argv[3])
    load(session, images, 0.0)
    print("ready", flush=True)
    for line in sys.stdin:
        print(*(f"{value:.0f}" for value in load(session, images, float(line))), flush=True)


if __name__ == "__main__":
    main()
