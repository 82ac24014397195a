"""Deployment on the available cores: workers x threads under load, as processes and as sessions in threads of one process.

Each worker sends its next batch when the last one is done (a closed loop), without a network.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import zoo
from zoo import tables
from zoo.bench import _budget, _memory, _picture, _show, _subjects, _timing, _worker, inference
from zoo.bench._budget import Budget
from zoo.errors import FileError
from zoo.export import _guard, _session

MODES = ("processes", "threads")
ROUNDS, QUICK_ROUNDS = 10, 3
Load = Callable[[float], list[np.ndarray]]
"""Seconds of load, and the latencies of each worker in ns."""


@dataclass(frozen=True)
class Setup:
    """Numbers of workers and of threads per worker, as processes or as threads of one process."""

    mode: str
    workers: int
    threads: int


def setups(cores: int) -> list[Setup]:
    """Powers of two and all cores, if workers x threads fit the cores; plus twice as many workers as cores."""
    counts = sorted({count for count in (1, 2, 4, 8, 16, 32, 64, cores) if count <= cores})
    pairs = [(workers, threads) for workers in counts for threads in counts if workers * threads <= cores]
    return [Setup(mode, *pair) for pair in [*pairs, (2 * cores, 1)] for mode in (MODES if pair[0] > 1 else MODES[1:])]


def main(
    quick: bool = False, targets: Sequence[str] = (), *, out: Path | None = None, batches: Sequence[int] = (), threads: int = 0,
    seconds: float = 0.0, budget: Budget | None = None, max_memory: int = 0, timeout: float = _guard.TIMEOUT, size: int = 0,
) -> Path:  # fmt: skip
    """Measure every setup in shuffled rounds; ``threads`` are the cores to use, ``seconds`` those of one turn, unless a ``budget`` for the command sets them. Returns the CSV."""
    cores, rows, budget = inference.checked_threads(threads), [], budget or Budget()
    budget.places = len(targets)
    folders: list[Path | None] = []
    for target in targets:
        with _subjects.opened(target, ("fp32",), max_memory=max_memory, timeout=timeout, size=size) as subject:
            folders.append(subject.folder)
            file, rounds = next(iter(subject.files.values())), QUICK_ROUNDS if quick else ROUNDS
            wanted, sizes = setups(cores), inference.fitting(subject, (1,), inference.checked_batches(batches))
            turn = seconds or (0.3 if quick else 1.0)
            if budget.total:
                turn = budget.turn(len(sizes) * len(wanted) * rounds, subject.name)
            _budget.announce(subject.name, sizes, (turn + _timing.REST_S) * len(wanted) * rounds)
            for batch in sizes:
                with _memory.enough_for(batch), _session.boundary(file.name):
                    found = measured(file, subject.noise(batch).numpy(), wanted, rounds, turn)
                rows += _rows(subject.name, batch, found)
            budget.places -= 1
    path = out or inference.default_out("serve", folders, [str(row["model"]) for row in rows])
    _timing.write_csv(path, rows)
    _picture.publish_both(path.with_suffix(".png"), lambda temporary: figure(rows, temporary))
    return path


def measured(
    file: Path, images: np.ndarray, wanted: Sequence[Setup], rounds: int, seconds: float
) -> dict[Setup, list[list[np.ndarray]]]:
    """For each setup and round the latencies of its workers; all workers run from the start, and idle ones sleep."""
    rng, order = np.random.default_rng(0), list(wanted)
    turns: dict[Setup, list[list[np.ndarray]]] = {setup: [] for setup in wanted}
    with contextlib.ExitStack() as stack:
        ready = {setup: stack.enter_context(_workers(setup, file, images)) for setup in wanted}
        for load in ready.values():
            load(0.05)
        for _ in range(rounds):
            rng.shuffle(order)
            for setup in order:
                time.sleep(_timing.REST_S)
                turns[setup].append(ready[setup](seconds))
    return turns


@contextlib.contextmanager
def _workers(setup: Setup, file: Path, images: np.ndarray) -> Iterator[Load]:
    maker = _processes if setup.mode == "processes" else _threads
    with maker(setup, file, images) as load:
        yield load


@contextlib.contextmanager
def _threads(setup: Setup, file: Path, images: np.ndarray) -> Iterator[Load]:
    sessions = [_worker.opened(file, setup.threads) for _ in range(setup.workers)]
    with ThreadPoolExecutor(setup.workers) as pool:
        yield lambda seconds: list(pool.map(lambda session: _worker.load(session, images, seconds), sessions))


@contextlib.contextmanager
def _processes(setup: Setup, file: Path, images: np.ndarray) -> Iterator[Load]:
    paths = os.pathsep.join(filter(None, [str(Path(zoo.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        np.save(folder / "images.npy", images)
        worker = [sys.executable, "-P", "-m", "zoo.bench._worker"]  # -P: no Python file of the current folder is imported
        command = [*worker, str(file), str(setup.threads), str(folder / "images.npy")]
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
                )
            )
            for _ in range(setup.workers)
        ]  # leaving the context closes its stdin, at which a worker ends

        def answers() -> list[str]:
            lines = [worker.stdout.readline() for worker in workers]  # type: ignore[union-attr]
            if not all(lines):
                raise FileError(f"a worker process ended ({file}); see the messages above, or use fewer --threads")
            return lines

        def load(seconds: float) -> list[np.ndarray]:
            for worker in workers:
                assert worker.stdin
                worker.stdin.write(f"{seconds}\n")
                worker.stdin.flush()
            return [np.array(line.split(), float) for line in answers()]

        answers()
        yield load


def _rows(model: str, batch: int, found: Mapping[Setup, list[list[np.ndarray]]]) -> list[dict[str, Any]]:
    rows, environment = [], _timing.environment()
    for setup, rounds in found.items():
        # rate of each worker over its own time, as their last calls do not end together
        speeds = np.array([sum(len(times) / times.sum() for times in workers) * batch * 1e9 for workers in rounds])
        times = np.concatenate([part for workers in rounds for part in workers]) / 1e6
        low, high = _timing.median_interval(speeds)
        quarter, three = np.quantile(speeds, [0.25, 0.75])
        row = {
            "model": model, "contender": "onnxruntime cpu", "mode": setup.mode, "workers": setup.workers, "threads": setup.threads,
            "batch": batch, "precision": "fp32", "images_per_s": float(np.median(speeds)), "low": low, "high": high,
            "median_ms": float(np.median(times)), "p95_ms": float(np.quantile(times, 0.95)), "p99_ms": float(np.quantile(times, 0.99)),
            "noisy": "yes" if len(speeds) < _timing.FEWEST or (three - quarter) / np.median(speeds) > _timing.SPREAD else "no",
            "rounds": len(speeds),
        }  # fmt: skip
        rows.append({key: _timing.rounded(value) for key, value in row.items()})
    best = front(rows)
    return [row | {"front": "yes" if number in best else "no"} | environment for number, row in enumerate(rows)]


def front(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Rows that no other beats in both throughput and 95th percentile of latency.

    >>> front([{"images_per_s": 10, "p95_ms": 1}, {"images_per_s": 20, "p95_ms": 2}, {"images_per_s": 15, "p95_ms": 3}])
    {0, 1}
    """
    points = [(float(row["images_per_s"]), float(row["p95_ms"])) for row in rows]
    return {
        number for number, (speed, late) in enumerate(points)
        if not any(s >= speed and p <= late and (s, p) != (speed, late) for s, p in points)
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table for a terminal, with the Pareto front in bold."""
    columns = ("model", ">batch", ">workers x threads", "as", ">img/s", ">95 % interval", ">p50 ms", ">p95 ms", "front")
    found = tables.make(columns, [])
    for row in rows:
        speed, low, high, median, p95 = (float(row[key]) for key in ("images_per_s", "low", "high", "median_ms", "p95_ms"))
        cells = (
            row["model"], str(row["batch"]), f"{row['workers']} x {row['threads']}", row["mode"] + ("*" if row["noisy"] == "yes" else ""),
            _show.short(speed), f"{_show.short(low)}-{_show.short(high)}", f"{median:.3g}", f"{p95:.3g}", row["front"],
        )  # fmt: skip
        found.add_row(*cells, style="bold" if row["front"] == "yes" else None)
    return found


def figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Latency against throughput, one point per setup, the front joined by a line; for the first model and batch."""
    own = [row for row in rows if (row["model"], row["batch"]) == (rows[0]["model"], rows[0]["batch"])]
    title = f"{own[0]['model']}, batch {own[0]['batch']}: workers x threads on {_show.many(own[0]['cores'], 'core')} of {own[0]['cpu']}"
    _picture.draw_front(path, title, f"onnxruntime {own[0]['onnxruntime']}, {own[0]['date']}", own)
