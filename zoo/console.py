"""What a person sees on stderr while zoo works: one line a decision, a bar on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

QUIET_SECONDS = 10.0


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Progress of a training run of ``epochs`` epochs, each of ``steps`` steps over ``images`` images."""

    def __init__(self, epochs: int, steps: int, images: int) -> None:
        self.epochs, self.steps, self.images = epochs, steps, images
        self.began = self.told = time.monotonic()
        self.first: float | None = None
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("train   "), BarColumn(24), TextColumn("{task.description}"))
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("starting", total=self.epochs * self.steps)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, epoch: int, done: int, loss: float) -> None:
        """After a step: ``done`` of the epoch's steps (epochs counted from 1), mean loss so far."""
        now, at = time.monotonic(), (epoch - 1) * self.steps + done
        if self.first is None:
            self.first, self.began = at, now
        rate = (at - self.first) / (now - self.began) if now > self.began else 0.0
        left = (self.epochs * self.steps - at) / rate if rate else 0.0
        text = f"epoch {epoch}/{self.epochs} · {rate * self.images / self.steps:,.0f} img/s · loss {loss:.3f} · left {clock(left)}"
        if self.bar is not None:
            self.bar.update(self.task, completed=at, description=text)
        elif now - self.told > QUIET_SECONDS:
            self.told = now
            say(f"train    {text}")

    def epoch(self, number: int, train: Mapping[str, Any], val: Mapping[str, Any] | None) -> None:
        """After an epoch: its line."""
        self.told = time.monotonic()
        checked = f" · val {100 * val['accuracy']:.1f} %" if val else ""
        line = (
            f"train    epoch {number}/{self.epochs} · {train['images_per_s']:,.0f} img/s · loss {train['loss']:.3f} · "
            f"train {100 * train['accuracy']:.1f} %{checked} · {clock(train['seconds'])}"
        )
        if self.bar is None:
            say(line)
        else:
            self.bar.console.print(line, highlight=False)


def clock(seconds: float) -> str:
    """``1:05`` for 65 seconds, ``2:03:00`` for two hours and three minutes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
