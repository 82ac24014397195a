"""Progress on stderr: one line per decision, a bar on a terminal, one line per ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

QUIET_SECONDS = 10.0
SILENT_SECONDS = 3.0
"""Longest time without a line where no bar is drawn."""
BAR = 15
"""Width of the bar in characters."""


def leading() -> bool:
    """Whether this process prints: under torchrun only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def plain(text: str) -> str:
    """Text that is safe on a terminal: escape sequences, line breaks and undecodable bytes are escaped.

    >>> plain("a" + chr(27) + "[2Jb")
    'a\\x1b[2Jb'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def print_line(line: str) -> None:
    """Print a line of progress to stderr; a closed pipe does not end the work."""
    if leading() and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(plain(line), file=sys.stderr, flush=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print several lines of progress to stderr."""
    for line in lines:
        print_line(line)


def counted(items: Iterable[T], total: int, words: str, each: int | Callable[[T], int] = 1) -> Iterator[T]:
    """The items; after every :data:`SILENT_SECONDS`, print a line such as ``data     decoded 512 of 5,784 · left 0:31``.

    An item counts for ``each`` of ``total``, or for what ``each`` returns for it; the last may count for fewer.
    """
    began = printed = time.monotonic()
    done = 0
    for item in items:
        yield item
        now, done = time.monotonic(), min(done + (each(item) if callable(each) else each), total)
        if now - printed > SILENT_SECONDS and done < total:
            printed = now
            print_line(f"{words} {done:,} of {total:,} · left {clock((now - began) / done * (total - done))}")


def note(topic: str, text: str) -> None:
    """Print a line about ``topic``, or a warning if the text begins with "warning"."""
    warned = text.removeprefix("warning: ")
    print_line(f"{topic if warned == text else 'warning':8} {warned}")


class Progress:
    """Progress of a training run of ``epochs`` epochs, each of ``steps`` steps over ``images`` images; ``held`` is evaluated after each.

    On a terminal a live bar (without colours if NO_COLOR is set) with a line above it for each finished epoch;
    elsewhere these lines, and a line of progress after every :data:`QUIET_SECONDS` without output.
    """

    def __init__(self, epochs: int, steps: int, images: int, held: str = "val") -> None:
        self.epochs, self.steps, self.images, self.held = epochs, steps, images, held
        self.began = self.printed = time.monotonic()
        self.first: int | None = None
        self.at_epoch = (0, 0, self.began)
        self.val: float | None = None
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if leading() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("train   "), BarColumn(BAR), TextColumn("{task.description}", markup=False))
            self.bar = Bar(*columns, console=Console(stderr=True, highlight=False), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("starting", total=self.epochs * self.steps)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, epoch: int, done: int, loss: float) -> None:
        """After a step: ``done`` of the epoch's steps (epochs counted from 1), mean loss of the epoch so far."""
        now, at = time.monotonic(), (epoch - 1) * self.steps + done
        if self.first is None:
            self.first, self.began = at, now
        if epoch != self.at_epoch[0]:
            self.at_epoch = (epoch, at, now)
        if self.bar is not None:
            self.bar.update(self.task, completed=at, description=fit(self._parts(epoch, at, now, loss), self._room(BAR + 2)))
        elif now - self.printed >= QUIET_SECONDS:
            self.printed = now
            print_line("train    " + fit(self._parts(epoch, at, now, loss), self._room()))

    def epoch(self, number: int, train: Mapping[str, Any], val: Mapping[str, Any] | None) -> None:
        """After an epoch: its line, from the rows of ``metrics.jsonl``."""
        self.printed = time.monotonic()
        self.val = val["accuracy"] if val else None
        parts = [
            (0, f"epoch {number}/{self.epochs}"),
            (3, f"{train['images_per_s']:,.0f} img/s"),
            (1, f"loss {train['loss']:.3f}"),
            (2, f"train {100 * train['accuracy']:.1f} %"),
            (0, f"{self.held} {100 * self.val:.1f} %" if self.val is not None else ""),
            (5, f"scale {train['focal_scale']:.3g}" if "focal_scale" in train else ""),
            (5, f"easy {100 * train['easy']:.1f} % hard {100 * train['hard']:.1f} %" if "easy" in train else ""),
            (4, clock(train["seconds"])),
        ]
        print_line("train    " + fit(parts, self._room()))

    def _parts(self, epoch: int, at: int, now: float, loss: float) -> list[tuple[int, str]]:
        _, epoch_first, epoch_began = self.at_epoch
        assert self.first is not None
        done, took = at - self.first, now - self.began
        speed = (at - epoch_first) * self.images / self.steps / max(now - epoch_began, 1e-9)
        left = (self.epochs * self.steps - at) * took / done if done else None
        return [
            (0, f"epoch {epoch}/{self.epochs}"),
            (3, f"{speed:,.0f} img/s" if at > epoch_first else ""),
            (1, f"loss {loss:.3f}"),
            (2, f"{self.held} {100 * self.val:.1f} %" if self.val is not None else ""),
            (4, clock(took)),
            (0, f"left {clock(left)}" if left is not None else ""),
        ]

    def _room(self, taken: int = 0) -> int:
        """Characters available after the first word of a line; unlimited in a log."""
        return self.bar.console.width - len("train    ") - taken if self.bar is not None else 1000


def fit(parts: Sequence[tuple[int, str]], width: int) -> str:
    """The texts joined by dots; those with the highest rank are dropped until the line fits into ``width`` characters.

    >>> fit([(0, "epoch 1/6"), (2, "901 img/s"), (1, "loss 2.303")], 25)
    'epoch 1/6 · loss 2.303'
    """
    kept = [part for part in parts if part[1]]
    while len(line := " · ".join(text for _, text in kept)) > width and len(kept) > 1:
        kept.remove(max(kept, key=lambda part: part[0]))
    return line


def first_ten(counts: Sequence[int]) -> str:
    """``5,000, 2,997 ...``: the images of the first classes."""
    return ", ".join(f"{n:,}" for n in counts[:10]) + (" ..." if len(counts) > 10 else "")


def clock(seconds: float) -> str:
    """``1:05`` for 65 seconds, ``2:03:00`` for two hours and three minutes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
