"""Start-up time of the command line: ``zoo --help`` and ``zoo models`` against starting Python and importing torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

import zoo
from zoo import tables
from zoo.bench import _timing

BASE = 'python -c "import torch"'
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    BASE: ["-c", "import torch"],
    "zoo --help": ["-m", "zoo", "--help"],
    "zoo models": ["-m", "zoo", "models"],
}


def main(quick: bool = False, *, out: Path | None = None, rounds: int = 0) -> Path:
    """Time whole processes, alternating; returns the CSV."""
    out = out or _timing.default_out("startup", quick=quick)
    calls = {name: _process(arguments) for name, arguments in COMMANDS.items()}
    samples = _timing.interleave(calls, rounds=rounds or (3 if quick else 30), warmup=1)
    rows = []
    for name, sample in samples.items():
        low, high = sample.interval
        row = {
            "contender": name, "median_ms": sample.median / 1e6, "p95_ms": sample.quantile(0.95) / 1e6, "low_ms": low / 1e6,
            "high_ms": high / 1e6, "ratio": _timing.ratio(samples[BASE], sample), "noisy": "yes" if sample.noisy else "no",
            "rounds": sample.rounds,
        }  # fmt: skip
        rows.append({key: _timing.rounded(value) for key, value in row.items()} | _timing.environment())
    return _timing.write_csv(out, rows)


def _process(arguments: Sequence[str]) -> Callable[[], object]:
    """A new Python process with the same zoo, which imports nothing from the current folder; its output is discarded."""
    paths = [str(Path(zoo.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return lambda: subprocess.run([sys.executable, "-P", *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    return tables.make(("command", ">median ms", ">95 % interval", ">p95 ms", ">ratio"), map(_cells, rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high, median, p95 = (float(row[key]) for key in ("low_ms", "high_ms", "median_ms", "p95_ms"))
    mark = " (noisy)" if row["noisy"] == "yes" else ""
    return f"{row['contender']}{mark}", f"{median:,.0f}", f"{low:,.0f}-{high:,.0f}", f"{p95:,.0f}", f"{float(row['ratio']):.1f}"
