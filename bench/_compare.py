"""Compare two benchmark files row by row: faster, slower, or not a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from zoo import tables
from zoo.bench import _show, _timing
from zoo.errors import FileError

KEYS = ("model", "contender", "mode", "workers", "device", "batch", "threads", "precision")
"""Columns that match rows of the two files, if both have them."""
KINDS = ("base", "workers", "steps")
"""Columns by which ``zoo bench``, ``--serve`` and ``training`` are distinguished: equal names have different meanings there."""
FIGURES = ("images_per_s", "low", "high")


def compared(first: Path, second: Path) -> list[dict[str, Any]]:
    """A row for each common row: both figures with their 95 % intervals, the ratio and the verdict.

    The ratio's interval is the widest compatible with both; if the intervals of the figures overlap, the verdict is ``not a
    difference``. Figures of fewer than six rounds have no 95 % interval: the verdict is ``too few rounds``.

    Raises:
        FileError: a file that is missing or none of these benchmarks', or two of different ones or without a row in common.
    """
    old, new = _read(first), _read(second)
    if apart := [key for key in KINDS if (key in old[0]) != (key in new[0])]:
        raise FileError(
            f"two kinds of benchmark ({first}, {second}; only one has {', '.join(apart)}); compare files of one command"
        )
    keys = [key for key in KEYS if key in old[0] and key in new[0]]
    by_key = {tuple(row[key] for key in keys): row for row in new}
    found = []
    for row in old:
        key = tuple(row[key] for key in keys)
        if key in by_key:
            found.append(dict(zip(keys, key, strict=True)) | _pair(row, by_key[key]))
    if not found:
        raise FileError(
            f"no rows in common ({first}, {second}; compared by {', '.join(keys)}); compare files of the same models"
        )
    return found


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileError(f"no file {str(path)!r}; give two CSV files written by zoo bench")
    try:
        rows = _timing.read_csv(path)
    except (OSError, ValueError) as error:
        raise FileError(f"cannot be read ({path}, {error}); give two CSV files written by zoo bench") from error
    if not rows or not {"contender", *FIGURES} <= set(rows[0]):
        raise FileError(
            f"not a benchmark of inference ({path}, no rows with {', '.join(FIGURES)}); zoo bench writes such files"
        )
    for number, row in enumerate(rows, 1):
        if not all(_positive(row[key]) for key in FIGURES):
            raise FileError(f"damaged ({path}, row {number}: {', '.join(FIGURES)} must be above 0); measure again: zoo bench")
    return rows


def _positive(text: str | None) -> bool:
    try:
        return 0 < float(text or "") < math.inf
    except ValueError:
        return False


def _pair(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, Any]:
    a, a_low, a_high = (float(old[key]) for key in FIGURES)
    b, b_low, b_high = (float(new[key]) for key in FIGURES)
    verdict = "faster" if b_low > a_high else "slower" if b_high < a_low else "not a difference"
    if _timing.few(old) or _timing.few(new):
        verdict = "too few rounds"
    noisy = "yes" in (old.get("noisy"), new.get("noisy"))
    row = {
        "first": a, "first_low": a_low, "first_high": a_high, "second": b, "second_low": b_low, "second_high": b_high, "ratio": b / a,
        "ratio_low": b_low / a_high, "ratio_high": b_high / a_low, "verdict": verdict, "noisy": "yes" if noisy else "no",
    }  # fmt: skip
    return {key: _timing.rounded(value) for key, value in row.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table for a terminal; differences within the 95 % intervals are marked as none."""
    found = tables.make(("contender", ">batch", ">first", ">second img/s", ">ratio", ">95 %", "verdict"), [])
    if any(row["noisy"] == "yes" for row in rows):
        found.caption, found.caption_justify = "* noisy: rounds of one or both are few or differ much", "left"
    several = len({row.get("model") for row in rows}) > 1
    for row in rows:
        name = f"{row['model']} {row['contender']}" if several else row["contender"]
        name += f" {row['workers']}x{row['threads']} {row['mode']}" if "workers" in row else ""
        cells = (
            name + ("*" if row["noisy"] == "yes" else ""), row.get("batch", ""), _show.short(row["first"]), _show.short(row["second"]),
            f"{row['ratio']:.2f}", f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}", row["verdict"],
        )  # fmt: skip
        found.add_row(*map(str, cells), style="bold" if row["verdict"] in ("faster", "slower") else None)
    return found
