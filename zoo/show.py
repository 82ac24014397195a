"""Tables that commands print to stdout: plain in a pipe, coloured on a terminal, 80 columns wide at the least."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zoo.spec import DataError


def out() -> Console:
    """A console on stdout; NO_COLOR and pipes are respected by rich."""
    width = (
        None
        if sys.stdout.isatty()
        else int(os.environ.get("COLUMNS", 0)) or max(shutil.get_terminal_size((100, 24)).columns, 80)
    )
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def percent(share: float | None) -> str:
    """0.9412 as ``94.1``; nothing for None."""
    return "" if share is None else f"{100 * share:.1f}"


def make(columns: Iterable[str], rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """A table whose columns starting with ``>`` are aligned right."""
    table = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0)
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def evaluation(split: str, classes: Sequence[str], result: Any) -> None:
    """The overall line, a row a class with its Wilson interval, and the worst confusion pairs."""
    rows = [(name, *row) for name, row in zip(classes, result.per_class)]
    pairs = [(classes[a], classes[b], count) for a, b, count in result.worst_pairs(3) if count]
    _evaluation(split, {key: getattr(result, key) for key in ("n", "accuracy", "low", "high", "macro")}, rows, pairs)


def result(folder: Path) -> None:
    """The test result of a run folder, from its files."""
    path = folder / "result.json"
    if not path.is_file():
        return
    with (folder / "per_class.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            (
                r["class"],
                int(r["n"]),
                int(r["correct"]),
                *(float(r[key]) if r[key] else None for key in ("accuracy", "low", "high")),
            )
            for r in csv.DictReader(file)
        ]
    with (folder / "confusion.csv").open(newline="", encoding="utf-8") as file:
        counts = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    names = [str(row[0]) for row in rows]
    both = [(names[a], names[b], counts[a][b] + counts[b][a]) for a in range(len(names)) for b in range(a)]
    pairs = sorted((pair for pair in both if pair[2]), key=lambda pair: -pair[2])[:3]
    _evaluation("test", json.loads(path.read_text(encoding="utf-8")), rows, pairs)


def _evaluation(
    split: str, overall: Mapping[str, Any], rows: Sequence[Sequence[Any]], pairs: Sequence[tuple[str, str, int]]
) -> None:
    console = out()
    console.print(
        f"{split:9} {percent(overall['accuracy'])} % [{percent(overall['low'])}, {percent(overall['high'])}] of {overall['n']:,} images"
        f" · macro {percent(overall['macro'])} %"
    )
    shown = rows if len(rows) <= 20 else sorted((row for row in rows if row[3] is not None), key=lambda row: row[3])[:20]
    cells = [
        (name, f"{n:,}", f"{right:,}", percent(share), f"{percent(low)} to {percent(high)}")
        for name, n, right, share, low, high in shown
    ]
    console.print(make(("class", ">n", ">correct", ">%", "95 % interval"), cells))
    if len(rows) > len(shown):
        console.print(f"the 20 weakest of {len(rows)} classes; all are in per_class.csv")
    if pairs:
        console.print("confused  " + ", ".join(f"{a} and {b} ({count})" for a, b, count in pairs))


LISTINGS: dict[str, tuple[str, ...]] = {
    "models": ("input", "params", "macs", "data", "weights", "paper"),
    "data": ("classes", "shape", "counts", "source"),
    "losses": ("options", "paper"),
}


def listing(kind: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Registry entries as a table: numbers with thousands separated."""
    if not rows:
        out().print(f"nothing matches; see zoo {kind}")
        return
    fields = LISTINGS[kind]
    numbers = {"params", "macs", "classes"}
    cells = [(name, *(_cell(field, row.get(field)) for field in fields)) for name, row in rows.items()]
    out().print(make(("name", *(f">{field}" if field in numbers else field for field in fields)), cells))


def _cell(field: str, value: Any) -> str:
    if value in (None, (), 0, ""):
        return ""
    if field == "counts":
        return f"{value[0]:,} + {value[1]:,}"
    if isinstance(value, tuple):
        return ("x" if field in ("input", "shape") else ", ").join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def predictions(answers: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """A line an image; DataError after them if a file could not be read."""
    bad = [answer for answer in answers if "error" in answer]
    for answer in bad:
        print(f"{answer['file']}: error: {answer['error']}", file=sys.stderr)
    if as_json:
        print(json.dumps(list(answers)))
    else:
        rows = [(a["file"], "  ".join(f"{name} {percent(p)} %" for name, p in a["top"])) for a in answers if "top" in a]
        out().print(make(("file", "class and probability"), rows))
    if bad:
        raise DataError(f"{len(bad)} of {len(answers)} images cannot be read ({bad[0]['file']!r} first); the others are above")


def doctor(rows: Iterable[tuple[str, str, str]]) -> None:
    """What is live, absent or broken, with the remedy."""
    out().print(make(("part", "state", "detail"), rows))
