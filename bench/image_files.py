"""Cost of image files: memory and start-up time of ``zoo train`` by the number of files, and prediction on one large picture."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

import zoo
from zoo import tables
from zoo.bench import _timing
from zoo.console import print_line
from zoo.errors import FileError

FILES, QUICK_FILES = (2_000, 200_000), (100, 200)
"""Files of the sets: base and the one that it is compared with."""
LARGE, QUICK_LARGE = (9000, 7000), (300, 200)
"""Width and height of the one picture."""
CLASSES, SIDE = 10, 16
MODEL = '''from torch import Tensor, nn


class Smallest(nn.Module):
    """One convolution and a linear layer, which take little memory and time."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).flatten(1))
'''


@dataclass(frozen=True)
class _Cost:
    """Of a process: seconds until training starts, total seconds, and peak of resident memory."""

    start_s: float
    total_s: float
    peak_mb: float


def main(quick: bool = False, *, out: Path | None = None) -> Path:
    """Train one epoch of a tiny net on sets of files, each twice, and classify one large picture; returns the CSV."""
    out = out or _timing.default_out("image_files", quick=quick)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "smallest.py").write_text(MODEL, encoding="utf-8")
        for n in QUICK_FILES if quick else FILES:
            print_line(f"measure  {n:,} files")
            _write_set(folder / f"set{n}", n)
            for what in ("first training", "second training"):  # the second finds the images in the cache
                words = ["train", "smallest.py:Smallest", "--data", f"set{n}", "--epochs", "1", "--out", "run", "--force"]
                rows.append({"what": what, "files": n} | _row(_cost(words, folder)))
        for kind in ("jpg", "png"):
            width, height = QUICK_LARGE if quick else LARGE
            _write(folder / f"large.{kind}", np.random.default_rng(0), (height, width))
            cost = _cost(["predict", "--run", "run", f"large.{kind}"], folder)
            rows.append({"what": f"predict a {kind.upper()} of {width} x {height}", "files": 1} | _row(cost))
    return _timing.write_csv(out, [row | _timing.environment() for row in rows])


def _row(cost: _Cost) -> dict[str, Any]:
    return {key: _timing.rounded(value) for key, value in vars(cost).items()}


def _write_set(folder: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(n):
        place = folder / f"class{number % CLASSES}"
        if number < CLASSES:
            place.mkdir(parents=True)
        _write(place / f"{number:06}.png", rng, (SIDE, SIDE))


def _write(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> None:
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)


def _cost(words: Sequence[str], folder: Path) -> _Cost:
    """Run a command of zoo in ``folder`` with a separate cache; FileError if it fails."""
    paths = [str(Path(zoo.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "ZOO_CACHE": str(folder / "cache")}
    began, start = time.monotonic(), 0.0
    command = [sys.executable, "-P", "-m", "zoo", *words]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        last = ""
        for last in child.stderr:
            if last.startswith("run "):
                start = time.monotonic() - began
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise FileError(f"command failed ({' '.join(words)}, {last.strip()}); nothing is written")
    return _Cost(start, time.monotonic() - began, usage.ru_maxrss / 1024)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    return tables.make(("what", ">files", ">start s", ">total s", ">peak MB"), map(_cells, rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (f"{float(row[key]):,.1f}" for key in ("start_s", "total_s", "peak_mb"))
    return row["what"], f"{int(row['files']):,}", *numbers
