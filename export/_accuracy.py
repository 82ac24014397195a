"""What a file gets right, with its interval, and whether another precision of it gets less right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo import metrics
from zoo.console import print_line
from zoo.errors import DataError
from zoo.export import _cases, _external, _session, onnx_int8
from zoo.export._graph import Exported
from zoo.run import Run
from zoo.spec import DataSet, Split

VALIDATION = 2000
LARGE = 64
"""Side in pixels above which fewer images are tried."""


def answer_of(graph: Any, run: Run, exported: Exported) -> _cases.Answer:
    """What onnxruntime gives for a graph or file, from uint8 images."""
    session = _session.open_session(graph) if isinstance(graph, Path) else _external.session(graph)
    name = session.get_inputs()[0].name
    return lambda part: session.run(None, {name: _cases.fed(part, run, exported)})[0]


def row(hits: np.ndarray) -> dict[str, Any]:
    """n, correct, accuracy in [0, 1] and its 95 % interval."""
    n, correct, accuracy, low, high = metrics.class_row(len(hits), int(hits.sum()))
    return {"n": n, "correct": correct, "accuracy": accuracy, "low": low, "high": high}


def of_run(run: Run) -> str:
    """The accuracy of a run, as ``zoo train`` and ``zoo eval`` say it, with the precision that it was taken in; nothing if it is
    not known. It is the one that others are said beside: a file may be in another precision, and differ in some images.
    """
    row = next((row for row in reversed(run.metrics) if row["split"] == "test"), None)
    if row is None:
        return ""
    n, precision = row.get("n"), run.env.get("precision")
    of = f" of {n:,}" if isinstance(n, int) else ""
    return f"the run: {100 * row['accuracy']:.2f} %{of}" + (f" in {precision}" if precision else "")


def hits(answer: _cases.Answer, part: Split, name: str) -> np.ndarray:
    """(N,) bool: which images of the test split ``part`` a file, ``name`` for people, puts in the right class."""
    print_line(f"accuracy {name} on {len(part):,} test images")
    return _cases.outputs(answer, part).argmax(1) == part.targets


def compared(hits: np.ndarray, reference: np.ndarray | None) -> dict[str, Any]:
    """:func:`row`, and against float32 on the same images: its accuracy, the drop in points and McNemar's test."""
    found = row(hits)
    if reference is not None:
        lost, won, p = metrics.mcnemar(reference, hits)
        drop = 100 * float(reference.mean() - hits.mean())
        found |= {"fp32": row(reference), "drop": round(drop, 4), "only_fp32": lost, "only_this": won, "p": p}
    return found


def choose(graph: Any, run: Run, exported: Exported, data: DataSet, seed: int) -> tuple[Any, dict[str, Any]]:
    """The 8 bit graph with the best accuracy on validation images, over methods and numbers of calibration images.

    Equal accuracy is decided by the mean |difference| of the outputs from float32.

    Raises:
        DataError: no training images.
    """
    small = run.input[1] <= LARGE
    counts: Sequence[int] = onnx_int8.COUNTS if small else onnx_int8.COUNTS[:1]
    images = _cases.calibration(run, data, counts[-1], seed)
    if not len(images):
        raise DataError(f"no training images to calibrate on ({data.name}); use the data that the run was trained on")
    counts = sorted({min(count, len(images)) for count in counts})
    val = _cases.spread(data.val if len(data.val) else data.train, VALIDATION if small else VALIDATION // 8)
    given = _cases.fed(images, run, exported)
    tried_on = f"{len(val):,} {'validation' if len(data.val) else 'training'} images"
    print_line(f"int8     tries {', '.join(onnx_int8.METHODS)} on {', '.join(map(str, counts))} training images")
    exact = _cases.outputs(answer_of(graph, run, exported), val)
    tried, best = [], None
    for method in onnx_int8.METHODS:
        for ranges in onnx_int8.calibrate(graph, given, method=method, counts=counts):
            made = onnx_int8.quantise(graph, ranges)
            got = _cases.outputs(answer_of(made, run, exported), val)
            right, apart = float((got.argmax(1) == val.targets).mean()), float(np.abs(got - exact).mean())
            print_line(f"int8     {method}, {ranges.count}: {100 * right:.2f} % of {tried_on}, mean |difference| {apart:.2g}")
            tried.append({"method": method, "images": ranges.count, "accuracy": round(right, 6), "mean_abs": round(apart, 6)})
            if best is None or (right, -apart) > best[0]:
                best = ((right, -apart), made, tried[-1])
    assert best is not None
    facts = {
        "method": best[2]["method"], "images": best[2]["images"], "seed": seed, "split": "train", "activations": "uint8", "weights": "int8 per channel",
        "chosen_on": tried_on, "tried": tried,
    }  # fmt: skip
    return best[1], facts
