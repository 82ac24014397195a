"""Ask a long job to stop: at once where nothing is lost by it, after the current step and a save where something is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Interrupted(Exception):
    """A signal asked to stop. ``code`` is the exit code; ``saved`` says whether there is a state to resume from."""

    def __init__(self, number: int, *, saved: bool = True) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + (number if number == signal.SIGINT else signal.SIGTERM)
        self.saved = saved


class Stop:
    """Called, gives the number of the signal that asked to stop, or 0."""

    def __init__(self) -> None:
        self.number = 0
        self.patient = False
        self.saved = False
        """There is a state to resume from, whenever the signal comes."""

    def __call__(self) -> int:
        return self.number

    @contextmanager
    def after_the_step(self) -> Iterator[None]:
        """In here a signal is only noted; the loop polls for it. Outside it raises :class:`Interrupted` where it comes."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False
        if self.number:
            raise Interrupted(self.number, saved=self.saved)

    def take(self, number: int, frame: object) -> None:
        """The signals' handler; a second Ctrl-C ends the process at once (files are whole at every moment)."""
        if self.number and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.number = number
        if not self.patient:
            raise Interrupted(number, saved=self.saved)
        # not print: its buffer may be in use where the signal came
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step\n".encode())


ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask a job to end; Ctrl-C besides, where there is something to save."""


@contextmanager
def handled(known: Sequence[signal.Signals] = (signal.SIGINT, *ENDING)) -> Iterator[Stop]:
    """Handle these signals until the block ends."""
    stop = Stop()
    # a signal that was ignored stays ignored: nohup, or a shell's background job
    wanted = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        old = {number: signal.signal(number, stop.take) for number in wanted}
    except ValueError:  # not the main thread: signals stay with whoever has them
        old = {}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
