"""In a child process: open a model and run it on noise (``python -m zoo.export._trial``)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import FileError
from zoo.export import _child, _feed, _session

PATIENCE = 5.0
"""Seconds of a first run above which there is no second one."""


def answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One answer if the model runs on noise: ``batch``, the only batch size it takes (0: any), and ``seconds`` of a call with
    ``images`` images (that batch size, or 1)."""
    path = Path(request["model"])
    session = _session.open_session(path)
    feed = _feed.of(session, path, size=request["size"])

    where, advice = str(path), "export it again"
    if feed.open:
        where, advice = (
            f"{path}, open sizes set to {' x '.join(map(str, feed.shape))}",
            "set another with --size, or export it with fixed sizes",
        )

    def run(batch: int) -> np.ndarray:
        with _session.boundary(where, advice):
            return np.asarray(session.run([feed.output], {feed.name: feed.noise(batch)})[0])

    start, images = time.perf_counter(), feed.batch or 1
    first = run(images)
    _check_answer(first, path)
    _feed.check_batch(feed, first, path, "export it with one")
    seconds = time.perf_counter() - start
    batch = feed.batch
    if seconds < PATIENCE:
        start = time.perf_counter()
        if not np.array_equal(run(images), first):
            raise FileError(f"model's output differs between runs ({path}); export it in evaluation mode")
        seconds = time.perf_counter() - start
        if not batch and not _takes_two(run, first):
            batch = 1
    yield {"batch": batch, "images": images, "seconds": seconds}


def _takes_two(run: Any, one: np.ndarray) -> bool:
    """Whether a free batch is one: some graphs reshape to one image inside, and fail or return another shape for two."""
    try:
        two = run(2)
    except FileError:
        return False
    return two.ndim == one.ndim and two.shape[:1] == (2,) and two.shape[1:] == one.shape[1:]


def _check_answer(answer: np.ndarray, path: Path) -> None:
    if answer.ndim < 1:
        raise FileError(f"model returns one number per batch ({path}); export it with one output per image")
    if answer.dtype.kind == "f" and not np.isfinite(answer).all():
        raise FileError(f"model's output is not finite ({path}, on noise); train or convert it again")


if __name__ == "__main__":
    _child.serve(answers)
