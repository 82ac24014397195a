"""Variants of one graph, timed against a base in the same rounds on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto
from rich.table import Table

from zoo import machine, runtimes, tables
from zoo.bench import _runtimes, _show, _timing
from zoo.bench._contenders import Call
from zoo.errors import DisagreeError


def check(calls: Mapping[str, Call], truth: str, allowed: Callable[[np.ndarray], float], what: str) -> None:
    """DisagreeError, naming ``what`` was run, if the outputs of a call differ from those of ``truth`` by more than ``allowed`` of them."""
    wanted = calls[truth]()
    for name, call in calls.items():
        apart = float(np.abs(call() - wanted).max())
        if not apart <= allowed(wanted):
            raise DisagreeError(
                f"{name} disagrees with {truth} ({what}, {apart:.2g}, allowed {allowed(wanted):.2g}); no results written"
            )


def rows(model: str, batch: int, calls: Mapping[str, Call], base: str, seconds: float) -> list[dict[str, Any]]:
    """A row of results per call, with its speed relative to ``base`` and a 95 % interval; ``seconds`` for all of them."""
    samples, found = _timing.interleave(calls, seconds=seconds), []
    for name, sample in samples.items():
        low, high = _timing.median_interval(samples[base].medians / sample.medians)
        row = {
            "model": model, "contender": name, "batch": batch, "threads": machine.cores(), "median_ms": sample.median / 1e6,
            "images_per_s": batch / sample.median * 1e9, "ratio": _timing.ratio(samples[base], sample), "ratio_low": low,
            "ratio_high": high, "noisy": "yes" if sample.noisy else "no", "rounds": sample.rounds,
        }  # fmt: skip
        found.append({key: _timing.rounded(value) for key, value in row.items()} | _timing.environment())
    return found


def session(graph: ModelProto, images: np.ndarray, change: Callable[[Any], None] = lambda options: None) -> Call:
    """A call that returns the outputs of onnxruntime on the CPU; ``change`` is applied to the session's options."""
    onnxruntime = runtimes.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = machine.cores(), 1, 4
    change(options)
    opened = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _runtimes.run(opened, images)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    return tables.make(("way", ">batch", ">img/s", ">ratio", ">95 %"), map(_cells, rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    mark = "*" if row["noisy"] == "yes" else ""
    spread = f"{float(row['ratio_low']):.3f}-{float(row['ratio_high']):.3f}"
    speed = _show.short(float(row["images_per_s"]))
    return (row["contender"] + mark, str(row["batch"]), speed, f"{float(row['ratio']):.3f}", spread)
