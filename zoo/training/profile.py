"""Where the time of a run goes: the parts of a step, validation, saving, and the operators of a few steps."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from zoo import csv_files
from zoo.console import print_line
from zoo.files import publish

LOAD = "load"
"""The part that begins a step."""
TRACED = range(5, 15)
"""Steps whose operators are recorded: after the first ones, which allocate memory and compile."""
HEADER = ("kind", "name", "calls", "ms_per_call", "seconds", "share")
Part = Callable[[str], AbstractContextManager[Any]]


def unmeasured(_: str) -> AbstractContextManager[Any]:
    """Context of a part of a run without a profile."""
    return contextlib.nullcontext()


class Profile:
    """Times of the parts of a run, and of the operators of ten of its steps.

    On a GPU the device is synchronised before and after each part, so that a part's time includes its kernels; the run is a
    little slower.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: dict[str, list[float]] = defaultdict(list)
        self._steps = 0
        self._trace: torch.profiler.profile | None = None
        self._tracing = False
        self._began = time.perf_counter()
        self._traced = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part; parts do not overlap. Those of traced steps are not counted, as tracing slows them."""
        if name == LOAD:
            if self._steps == TRACED.start:
                self._start_trace()
            if self._steps == TRACED.stop:
                self._stop_trace()
            self._steps += 1
        began = self._now()
        with torch.profiler.record_function(f"zoo {name}"):
            yield
        if not self._tracing:
            self._times[name].append(self._now() - began)

    def write(self, folder: Path) -> None:
        """Write ``profile.csv``, and ``profile_trace.json`` for viewers of Chrome traces (Perfetto)."""
        total = self._now() - self._began
        self._stop_trace()
        csv_files.write(folder / "profile.csv", HEADER, [*self._parts(total - self._traced), *self._operators()])
        if (trace := self._trace) is not None:
            publish(folder / "profile_trace.json", lambda temporary: trace.export_chrome_trace(str(temporary)))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _start_trace(self) -> None:
        print_line(f"profile  steps {TRACED.start + 1} to {TRACED.stop}: recording operators")
        self._tracing, self._traced = True, -self._now()
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it prints an error where there is no GPU
        self._trace = torch.profiler.profile(activities=kinds, acc_events=True)
        self._trace.start()

    def _stop_trace(self) -> None:
        if self._tracing:
            assert self._trace is not None
            self._trace.stop()
            self._tracing, self._traced = False, self._traced + self._now()

    def _parts(self, total: float) -> list[tuple[str, str, int, float, float, float]]:
        """The parts, the longest first, and the rest of the run; the time per call is the median."""
        found = [("part", name, len(each), 1e3 * statistics.median(each), sum(each)) for name, each in self._times.items()]
        rest = max(0.0, total - sum(row[-1] for row in found))
        found = [*sorted(found, key=lambda row: -row[-1]), ("part", "other", 1, 1e3 * rest, rest)]
        return [_row(*row, total) for row in found]

    def _operators(self) -> list[tuple[str, str, int, float, float, float]]:
        """The operators of the traced steps, without those that they call, the longest first."""
        if self._trace is None:
            return []
        of = "self_cpu_time_total" if self._device.type == "cpu" else "self_device_time_total"
        times = {each.key: (each.count, getattr(each, of) / 1e6) for each in self._trace.key_averages()}
        times = {name: each for name, each in times.items() if each[1] > 0 and not name.startswith(("zoo ", "Profiler"))}
        total = sum(seconds for _, seconds in times.values())
        return [
            _row("operator", name, calls, 1e3 * seconds / calls, seconds, total)
            for name, (calls, seconds) in sorted(times.items(), key=lambda pair: -pair[1][1])
        ]


def _row(
    kind: str, name: str, calls: int, ms: float, seconds: float, total: float
) -> tuple[str, str, int, float, float, float]:
    return kind, name, calls, round(ms, 4), round(seconds, 6), round(seconds / max(total, 1e-12), 5)
