"""Overhead of zoo's timing: a benchmark against a bare loop around ``session.run`` in the same process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from zoo import tables
from zoo.bench import _budget, _memory, _runtimes, _subjects, _timing, inference
from zoo.bench._budget import Budget
from zoo.bench._contenders import Call
from zoo.errors import DisagreeError
from zoo.export import _guard, _session

ALLOWED = 0.01
"""Largest accepted relative difference."""


def main(
    quick: bool = False, targets: Sequence[str] = (), *, out: Path | None = None, batches: Sequence[int] = (), threads: int = 0,
    seconds: float = 0.0, budget: Budget | None = None, max_memory: int = 0, timeout: float = _guard.TIMEOUT, size: int = 0,
) -> Path:  # fmt: skip
    """Measure both ways in turns, for each model and batch (default 1 and 8); returns the CSV.

    Raises:
        DisagreeError: the two differ significantly by more than 1 %.
    """
    used, rows, budget = inference.checked_threads(threads), [], budget or Budget()
    budget.places = len(targets)
    folders: list[Path | None] = []
    for target in targets:
        with _subjects.opened(target, ("fp32",), max_memory=max_memory, timeout=timeout, size=size) as subject:
            folders.append(subject.folder)
            path = next(iter(subject.files.values()))
            session = _session.open_session(path, threads=used)
            sizes = inference.fitting(subject, (1, 8), inference.checked_batches(batches))
            turn = budget.turn(len(sizes), subject.name) if budget.total else seconds or (2.0 if quick else 10.0)
            _budget.announce(subject.name, sizes, turn)
            for batch in sizes:
                with _memory.enough_for(batch), _session.boundary(path.name):
                    call = _runtimes.run(session, subject.noise(batch).numpy())
                    rows.append(_row(subject.name, batch, used, *both(call, turn)))
            budget.places -= 1
    path = out or inference.default_out("self_check", folders, [str(row["model"]) for row in rows])
    _timing.write_csv(path, rows)
    if wrong := [row for row in rows if row["verdict"] == "no"]:
        raise DisagreeError(
            f"zoo's figure differs by {wrong[0]['difference']:+.1%} from a bare loop ({wrong[0]['model']}, batch {wrong[0]['batch']},"
            f" allowed {ALLOWED:.0%}; {path}); measure on a quiet machine"
        )
    return path


def both(call: Call, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(rounds,) nanoseconds per call by zoo's clock, and by a loop that reads a clock only at its ends; alternating, without pauses.

    Only one session runs here, so no pause for other threads is needed, and pairs of a few milliseconds see the same machine.
    """
    own: list[float] = []
    bare: list[float] = []
    count = max(1, round(_timing.TURN_NS / _loop(call, 10)))
    ways = [
        lambda: own.append(float(_timing.timed(call, count, 1, _nothing).mean())),
        lambda: bare.append(_loop(call, count)),
    ]
    with _timing.no_collection():
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(own) < 5:
            for way in ways:
                way()
            ways.reverse()
    return np.array(own), np.array(bare)


def _nothing() -> None:
    """What a turn waits for on the CPU."""


def _loop(call: Call, count: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - start) / count


def _row(model: str, batch: int, threads: int, own: np.ndarray, bare: np.ndarray) -> dict[str, Any]:
    ratios = bare / own  # of images per second
    low, high = _timing.median_interval(ratios)
    difference = float(np.median(ratios)) - 1
    if len(ratios) < _timing.FEWEST:
        verdict = "undecided"
    elif low - 1 > ALLOWED or high - 1 < -ALLOWED:
        verdict = "no"
    else:
        verdict = "yes" if low - 1 >= -ALLOWED and high - 1 <= ALLOWED else "undecided"
    row = {
        "model": model, "batch": batch, "threads": threads, "images_per_s": batch / float(np.median(own)) * 1e9,
        "bare_per_s": batch / float(np.median(bare)) * 1e9, "difference": difference, "low": low - 1, "high": high - 1,
        "verdict": verdict, "rounds": len(own),
    }  # fmt: skip
    return {key: _timing.rounded(value) for key, value in row.items()} | _timing.environment()


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table for a terminal; ``undecided`` means that the machine is too noisy, or the rounds too few, to resolve 1 %."""
    columns = ("model", ">batch", ">zoo img/s", ">bare loop img/s", ">difference %", ">95 %", "within 1 %")
    return tables.make(columns, map(_cells, rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    speed, bare, difference, low, high = (
        float(row[key]) for key in ("images_per_s", "bare_per_s", "difference", "low", "high")
    )
    shown = f"{100 * low:+.2f} to {100 * high:+.2f}"
    return row["model"], str(row["batch"]), f"{speed:,.0f}", f"{bare:,.0f}", f"{100 * difference:+.2f}", shown, row["verdict"]
