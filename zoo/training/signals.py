"""Stop a long job on a signal: at once if nothing is lost, otherwise after the current step and a save."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """A signal requested a stop. ``code`` is the exit code; ``saved`` says whether there is a state to resume from.

    Not an Exception: a library's ``except Exception`` must not take it for a failure. Not a KeyboardInterrupt: click
    replaces that by an Abort without the command that resumes.
    """

    def __init__(self, number: int, *, saved: bool = True) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.code = 128 + (number if number == signal.SIGINT else signal.SIGTERM)
        self.saved = saved

    def __reduce__(self) -> tuple[Any, ...]:
        return Interrupted, (self.number,), self.__dict__


class Stop:
    """Calling it returns the number of the received signal, or 0."""

    def __init__(self) -> None:
        self.number = 0
        self.patient = False
        self.saved = False
        """Whether a state to resume from exists, whenever the signal arrives."""

    def __call__(self) -> int:
        return self.number

    @contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Inside this block a signal is only recorded and the loop polls for it; outside, it raises :class:`Interrupted` at once."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False
        if self.number:
            raise Interrupted(self.number, saved=self.saved)

    def take(self, number: int, frame: object) -> None:
        """The signal handler; a second Ctrl-C ends the process at once (files are complete at every moment)."""
        if self.number and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.number = number
        if not self.patient:
            raise Interrupted(number, saved=self.saved)
        # not print: its buffer may be in use
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step\n".encode())


ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that end a job; plus Ctrl-C, if there is something to save."""


@contextmanager
def handled(known: Sequence[signal.Signals] = (signal.SIGINT, *ENDING)) -> Iterator[Stop]:
    """Handle these signals until the block ends."""
    stop = Stop()
    # a signal that was ignored stays ignored: nohup, or a shell's background job
    wanted = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        old = {number: signal.signal(number, stop.take) for number in wanted}
    except ValueError:  # not the main thread: existing handlers are kept
        old = {}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
