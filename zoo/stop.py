"""Ask a long job to stop after its current step, so that nothing is torn."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved. ``code`` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + (number if number == signal.SIGINT else signal.SIGTERM)


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Yield a function that gives the number of the signal that asked to stop, or 0; a second Ctrl-C stops at once."""
    seen: list[int] = []

    def remember(number: int, frame: object) -> None:
        if seen and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(number)
        print(f"\n{signal.Signals(number).name}: saving after this step", file=sys.stderr, flush=True)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    try:
        old = {number: signal.signal(number, remember) for number in wanted}
    except ValueError:  # not the main thread: signals stay with whoever has them
        old = {}
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
