"""The clock of all benchmarks: contenders alternate in shuffled rounds, and each figure has its interval and environment."""

from __future__ import annotations

import gc
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo import csv_files, files, machine, run_folders

TURN_NS = 5_000_000
"""A turn repeats its contender for about this long (one call at least)."""
REST_S = 0.02
"""A pause before each turn: the idle threads of the previous contender's pool spin for milliseconds, on the cores that the next
one needs (without the pause eager ResNet-32 at batch 1 after onnxruntime measured 3 times as slow)."""
SETTLE_NS = 2_000_000
"""Untimed calls at the start of a turn, to warm caches and wake the contender's threads."""
LONG_NS = 20 * SETTLE_NS
"""If the first call of a turn takes longer than this, it is the turn: warm-up effects of 2 ms do not matter."""
SHORTEST_NS = 50_000
"""Calls shorter than this are timed in groups, since timing one adds about 150 ns."""
SPREAD, DRIFT = 0.15, 0.10
"""Above this interquartile range, or change from the first to the second half, over the median, a sample is noisy."""
FEWEST, MOST = 6, 2000
"""Rounds when a time budget is given. With fewer than 6, no two of them have the median between them with a probability of 95 %."""

ENVIRONMENT = ("device", "cpu", "cores", "zoo", "python", "torch", "onnxruntime", "commit", "date", "command")


@dataclass(frozen=True)
class Sample:
    """Measured times of one contender: one array of nanoseconds per call for each round."""

    turns: tuple[np.ndarray, ...]

    @property
    def rounds(self) -> int:
        return len(self.turns)

    @cached_property
    def medians(self) -> np.ndarray:
        """(rounds,) median time of each round's turn, in ns."""
        return np.array([np.median(turn) for turn in self.turns])

    @cached_property
    def rates(self) -> np.ndarray:
        """(rounds,) calls per second in each round's turn: slow calls count fully, as in a service."""
        return 1e9 / np.array([turn.mean() for turn in self.turns])

    @property
    def rate(self) -> float:
        """Calls per second: median over rounds."""
        return float(np.median(self.rates))

    @property
    def median(self) -> float:
        """Median over rounds, in ns."""
        return float(np.median(self.medians))

    def quantile(self, q: float) -> float:
        """Quantile over all timed calls, in ns; of group means if calls are timed in groups."""
        return float(np.quantile(np.concatenate(self.turns), q))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of :attr:`median`, in ns, over rounds, as calls of one turn are not independent."""
        return median_interval(self.medians)

    @property
    def noisy(self) -> bool:
        """Whether the figures are unreliable: too few rounds for an interval, or they spread or drift much, in median or rate."""
        return self.rounds < FEWEST or _unsteady(self.medians) or _unsteady(self.rates)


def _unsteady(values: np.ndarray) -> bool:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    first, second = (np.median(half) for half in np.array_split(values, 2))
    return bool((high - low) / median > SPREAD or abs(second / first - 1) > DRIFT)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """Interval that has the median with a probability of at least 95 %, whatever the distribution of ``values`` (n,).

    Its ends are the k-th smallest and the k-th largest value: the true median is outside if fewer than k values are on one side of
    it, and their number is binomial (Conover 1999, "Practical nonparametric statistics", section 3.2). For fewer than
    :data:`FEWEST` values, it is their range, which has a lower probability: 75 % for three.
    """
    n, ordered = len(values), np.sort(values)
    below, k = 1 / 2**n, 0  # the probability of at most k values on one side
    while below <= 0.025:
        k += 1
        below += math.comb(n, k) / 2**n
    at = max(k, 1) - 1
    return float(ordered[at]), float(ordered[n - 1 - at])


def ratio(base: Sample, other: Sample) -> float:
    """Speed of ``other`` relative to base: the median over rounds of base time over other time."""
    return float(np.median(base.medians / other.medians))


def speedup(base: Sample, other: Sample) -> float:
    """:func:`ratio` of calls per second."""
    return float(np.median(other.rates / base.rates))


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    warmup: int = 2,
    sync: Callable[[], object] | None = None,
    seed: int = 0,
) -> dict[str, Sample]:
    """Time ``contenders`` against each other: in each round each takes one turn, in a newly shuffled order.

    Slow drifts of the machine (heat, other load) thus affect all equally. Give the number of ``rounds``, or the ``seconds``
    that all rounds together may take. ``warmup`` calls of each come first, untimed. ``sync`` waits for the device; it is
    called before the clock is read.
    """
    if (rounds is None) == (seconds is None):
        raise ValueError("give either rounds or seconds")
    wait = sync or (lambda: None)
    for call in contenders.values():
        for _ in range(warmup):
            call()
        wait()
    group = {name: max(1, -(-SHORTEST_NS // _once(call, wait))) for name, call in contenders.items()}
    turns: dict[str, list[np.ndarray]] = {name: [] for name in contenders}
    order, rng = list(contenders), np.random.default_rng(seed)
    with no_collection():
        start = time.perf_counter()
        for done in range(rounds or MOST):
            if seconds is not None and done >= FEWEST and time.perf_counter() - start > seconds:
                break
            rng.shuffle(order)
            for name in order:
                turns[name].append(_turn(contenders[name], group[name], wait))
    return {name: Sample(tuple(times)) for name, times in turns.items()}


def _once(call: Callable[[], object], wait: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    call()
    wait()
    return max(1, time.perf_counter_ns() - start)


def _turn(call: Callable[[], object], group: int, wait: Callable[[], object]) -> np.ndarray:
    time.sleep(REST_S)
    first = _once(call, wait)
    if first > LONG_NS:
        return np.array([first], float)
    settled: list[int] = []  # without the first call, which may wait milliseconds for threads to wake
    while sum(settled) < SETTLE_NS:
        settled.append(_once(call, wait))
    return timed(call, max(1, round(TURN_NS / float(np.median(settled)) / group)), group, wait)


def timed(call: Callable[[], object], count: int, group: int, wait: Callable[[], object]) -> np.ndarray:
    """(count,) nanoseconds per call, each the mean of ``group`` calls.

    The count is fixed beforehand: a turn of fixed duration would tend to end with a slow call.
    """
    times = np.empty(count)
    clock = time.perf_counter_ns
    for at in range(count):
        start = clock()
        for _ in range(group):
            call()
        wait()
        times[at] = (clock() - start) / group
    return times


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection while something is timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def busy(seconds: float = 0.3) -> float:
    """Cores used by other processes while this one sleeps for ``seconds``; 0 if unknown (proc(5))."""
    before = _idle()
    start = time.perf_counter()
    time.sleep(seconds)
    if before is None or (after := _idle()) is None:
        return 0.0
    total, idle = (new - old for new, old in zip(after, before))
    taken = (total - idle) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - start)
    return max(0.0, taken)


def _idle() -> tuple[int, int] | None:
    """Clock ticks since boot over all cores, and those of them that were idle."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    ticks = [int(word) for word in path.read_text().splitlines()[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Environment and command of a figure: the columns :data:`ENVIRONMENT` at the end of each row."""
    facts = machine.facts(device or torch.device("cpu")) | {
        "cores": machine.cores(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": _command(),
    }
    return {name: str(facts[name]) for name in ENVIRONMENT}


def trained_on(rows: Iterable[Mapping[str, Any]]) -> str:
    """The processors or GPUs of rows of training runs, each once, for a picture."""
    named = (row["cpu"] if row["device"] == "cpu" else row["device"] for row in rows)
    return f"trained on {', '.join(dict.fromkeys(named))}"


def _command() -> str:
    """The command line without machine-specific folders."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    return shlex.join([name, *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])])


def rounded(value: Any) -> Any:
    """Floats to four significant digits, more than the precision of any timing; other values unchanged."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def default_out(name: str, *, quick: bool) -> Path:
    """``bench/results/NAME.csv`` of a checkout; for a quick run or an installed package, ``runs/bench``."""
    checkout = Path(__file__).resolve().parent.parent
    kept = (checkout / ".git").exists() and not quick
    return (checkout / "bench" / "results" if kept else run_folders.root() / "bench") / f"{name.replace('/', '-')}.csv"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Publish ``rows``, which must not be empty and must have the same columns; returns ``path``."""
    if not rows:
        raise ValueError(f"no rows for {path.name}")
    columns = list(rows[0])
    for row in rows:
        if list(row) != columns:
            raise ValueError(f"columns differ: {columns} and {list(row)}")

    with files.alone(path):  # :func:`zoo.files.check_writable` of another process removes what no process is writing
        csv_files.write(path, columns, (row.values() for row in rows))
    return path


def merged(path: Path, rows: Sequence[Mapping[str, Any]], keep: Callable[[Mapping[str, str]], bool]) -> list[Mapping[str, Any]]:
    """``rows`` after those of the file, if it exists, that are to be kept, with the columns of ``rows``."""
    old = filter(keep, read_csv(path)) if path.is_file() else ()
    return [*({name: row.get(name, "") for name in rows[0]} for row in old), *rows]


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV written by :func:`write_csv`, as text; those of fewer than :data:`FEWEST` rounds are noisy.

    Earlier versions of zoo did not mark them.
    """
    rows = csv_files.read(path)
    return [row | {"noisy": "yes"} if "noisy" in row and few(row) else row for row in rows]


def few(row: Mapping[str, str]) -> bool:
    """Whether a row was measured in too few rounds for a 95 % interval."""
    return row.get("rounds", "").isdecimal() and int(row["rounds"]) < FEWEST
