"""Accuracy of a file with its interval, and comparison between precisions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo import metrics
from zoo.console import print_line
from zoo.export import _cases, _external, _session
from zoo.export._graph import Exported
from zoo.spec import Split

if TYPE_CHECKING:
    from zoo.run import Run

TIMED, TURNS = 16, 7
"""Number of images and of pairs of calls for comparing the speed of a precision with float32."""


def answer_of(graph: Any, exported: Exported) -> _cases.Answer:
    """Outputs of onnxruntime for a graph or file, from images."""
    session = _session.open_session(graph) if isinstance(graph, Path) else _external.session(graph)
    name = session.get_inputs()[0].name
    return lambda part: session.run(None, {name: _cases.fed(part, exported)})[0]


def of_images(answer: _cases.Answer, exported: Exported) -> _cases.Answer:
    """``answer`` as a function of images instead of the file's inputs."""
    return lambda part: answer(_cases.fed(part, exported))


def slower(answer: _cases.Answer, exact: _cases.Answer, images: np.ndarray) -> float:
    """Time of ``answer`` relative to ``exact`` on a batch: the median over alternating pairs of calls."""
    part, ratios = images[:TIMED], []
    for call in (answer, exact):
        call(part)
    for _ in range(TURNS):
        spent = []
        for call in (answer, exact):
            start = time.perf_counter()
            call(part)
            spent.append(time.perf_counter() - start)
        ratios.append(spent[0] / spent[1])
    return float(np.median(ratios))


def row(hits: np.ndarray) -> dict[str, Any]:
    """n, correct, accuracy in [0, 1] and its 95 % interval."""
    n, correct, accuracy, low, high = metrics.class_row(len(hits), int(hits.sum()))
    return {"n": n, "correct": correct, "accuracy": accuracy, "low": low, "high": high}


def of_run(run: Run) -> str:
    """The accuracy of a run, as reported by ``zoo train`` and ``zoo eval``, with its precision; empty if unknown. A file may have another precision and differ in some images."""
    row = next((row for row in reversed(run.metrics) if row["split"] == "test"), None)
    if row is None:
        return ""
    n, precision = row.get("n"), run.env.get("precision")
    of = f" of {n:,}" if isinstance(n, int) else ""
    return f"the run: {100 * row['accuracy']:.2f} %{of}" + (f" in {precision}" if precision else "")


def hits(answer: _cases.Answer, part: Split, name: str, known: Mapping[int, np.ndarray] | None = None) -> np.ndarray:
    """(N,) bool: which images of the test split ``part`` a file, displayed as ``name``, classifies correctly.

    ``known`` are outputs that are already computed, by number of the image.
    """
    print_line(f"accuracy {name} on {len(part):,} test images")
    return _cases.outputs(answer, part, known).argmax(1) == part.targets


def compared(hits: np.ndarray, reference: np.ndarray | None) -> dict[str, Any]:
    """:func:`row`, and against float32 on the same images: its accuracy, the drop in points and McNemar's test."""
    found = row(hits)
    if reference is not None:
        lost, won, p = metrics.mcnemar(reference, hits)
        drop = 100 * float(reference.mean() - hits.mean())
        found |= {"fp32": row(reference), "drop": round(drop, 4), "only_fp32": lost, "only_this": won, "p": p}
    return found
