"""The tables of one evaluation as CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from zoo import csv_files, metrics


def write_tables(
    folder: Path, result: metrics.Result, logits: Tensor, targets: Tensor, files: Sequence[str], classes: Sequence[str]
) -> None:
    """``per_class.csv``, ``confusion.csv`` and ``predictions.csv`` of logits (N, C) for targets (N,), one of ``files`` each."""
    csv_files.write(
        folder / "per_class.csv",
        ["class", "n", "correct", "accuracy", "low", "high"],
        ([name, *row] for name, row in zip(classes, result.per_class)),
    )
    csv_files.write(
        folder / "confusion.csv",
        ["true\\pred", *classes],
        ([name, *map(int, row)] for name, row in zip(classes, result.confusion)),
    )
    probability, predicted = logits.softmax(1).max(1)
    rows = zip(files, targets.tolist(), predicted.tolist(), probability.tolist())
    csv_files.write(
        folder / "predictions.csv",
        ["file", "target", "predicted", "probability"],
        ([f, classes[t], classes[p], round(q, 6)] for f, t, p, q in rows),
    )
