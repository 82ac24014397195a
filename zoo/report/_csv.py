"""The tables of one evaluation as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo import metrics
from zoo.files import publish


def write_tables(
    folder: Path, result: metrics.Result, logits: Tensor, targets: Tensor, files: Sequence[str], classes: Sequence[str]
) -> None:
    """``per_class.csv``, ``confusion.csv`` and ``predictions.csv`` of logits (N, C) for targets (N,), one of ``files`` each."""
    _write(
        folder / "per_class.csv",
        ["class", "n", "correct", "accuracy", "low", "high"],
        ([name, *row] for name, row in zip(classes, result.per_class)),
    )
    _write(
        folder / "confusion.csv",
        ["true\\pred", *classes],
        ([name, *map(int, row)] for name, row in zip(classes, result.confusion)),
    )
    probability, predicted = logits.softmax(1).max(1)
    rows = zip(files, targets.tolist(), predicted.tolist(), probability.tolist())
    _write(
        folder / "predictions.csv",
        ["file", "target", "predicted", "probability"],
        ([f, classes[t], classes[p], round(q, 6)] for f, t, p, q in rows),
    )


def _write(path: Path, header: list[str], rows: Iterable[Sequence[Any]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    publish(path, write)
