"""What restoring layers to float32 costs: accuracy and speed of a run in float32, in int8 and in int8 with its worst layers restored.

The restored file is that of ``zoo export --precision int8 --max-drop 0.1``. All three are timed in the same rounds in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from zoo import run as engine
from zoo import run_folders, tables
from zoo.bench import _show, _timing, _variants
from zoo.bench._contenders import Call
from zoo.console import print_line
from zoo.errors import DataError, DisagreeError
from zoo.export import _accuracy, _cases, _job, _pipeline, _repair, onnx_int8

MAX_DROP = 0.1
"""Allowed loss of test accuracy in points."""
BASE = "int8"
BATCHES = (1, 64)


def main(
    quick: bool = False,
    *,
    out: Path | None = None,
    runs: Sequence[str] = (),
    batches: Sequence[int] = BATCHES,
    seconds: float = 0.0,
    max_drop: float = MAX_DROP,
) -> Path:
    """Export, evaluate and time each run (default: the latest); returns the CSV, which keeps its rows of other runs.

    Raises:
        UsageError: no such run. DataError: a run without test images. DisagreeError: restoring half of the layers is not enough
            for any run; if it is enough for some, the others are omitted with a line.
    """
    out, rows = out or _timing.default_out("int8_repair", quick=quick), []
    done: set[str] = set()
    loaded = [engine.load(run_folders.find(name)) for name in runs or ("latest",)]
    for number, run in enumerate(loaded, 1):
        try:
            rows += _rows(run, batches[-1:] if quick else batches, seconds or (2.0 if quick else 30.0), max_drop)
        except DisagreeError as error:
            if number == len(loaded) and not rows:
                raise
            print_line(f"warning  {run.path.name} omitted: {error}")
        done.update(row["run"] for row in rows)
        if rows:  # after each run, which takes minutes
            _timing.write_csv(out, _timing.merged(out, rows, lambda row: row["run"] not in done))
    return out


def _rows(run: engine.Run, batches: Sequence[int], seconds: float, max_drop: float) -> list[dict[str, Any]]:
    subject = _job.of_run(run, 1000)
    if subject.test is None:
        raise DataError(f"run has no test images to measure accuracy on ({run.path}); make its data set available")
    job = _pipeline.job_of(subject, "normalize", softmax=False, max_drop=max_drop)
    repaired, _, tested = _pipeline.accepted(onnx_int8, job, "model.int8.onnx")
    assert job.calibration is not None and tested is not None
    restored, layers = job.calibration.get("restored", []), len(_repair.layers(job.exact))
    graphs = {"fp32": job.exact, BASE: job.chosen.graph, "int8-repaired": repaired}
    whole = _accuracy.hits(_accuracy.answer_of(job.chosen.graph, job.exported), subject.test, BASE)
    results = {
        "fp32": tested["fp32"] | {"drop": 0.0},
        BASE: _accuracy.compared(whole, job.exact_hits),
        "int8-repaired": tested,
    }
    floats, found = {"fp32": layers, BASE: 0, "int8-repaired": len(restored)}, []
    for batch in batches:
        images = _cases.fed(np.resize(subject.images, (batch, *subject.images.shape[1:])), job.exported)
        calls: dict[str, Call] = {name: _variants.session(graph, images) for name, graph in graphs.items()}
        for row in _variants.rows(subject.name, batch, calls, BASE, seconds):
            result = results[row["contender"]]
            measured = {
                "layers": layers, "float_layers": floats[row["contender"]], "accuracy": _timing.rounded(result["accuracy"]),
                "drop": result["drop"], "test_images": result["n"], "chosen_on": job.calibration.get("restored_on", job.calibration["chosen_on"]),
            }  # fmt: skip
            found.append({"run": run.path.name} | measured | row)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    columns = ("model", "precision", ">float layers", ">accuracy %", ">drop", ">batch", ">img/s", ">ratio", ">95 %")
    return tables.make(columns, map(_cells, rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    mark = "*" if row["noisy"] == "yes" else ""
    return (
        row["model"], row["contender"] + mark, f"{row['float_layers']}/{row['layers']}", tables.percent(float(row["accuracy"])),
        f"{float(row['drop']):+.2f}", str(row["batch"]), _show.short(float(row["images_per_s"])), f"{float(row['ratio']):.3f}",
        f"{float(row['ratio_low']):.3f}-{float(row['ratio_high']):.3f}",
    )  # fmt: skip
