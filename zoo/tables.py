"""Tables that commands print to stdout: coloured and fitted to the width of a terminal, plain and unlimited in a pipe."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zoo import csv_files, files, run_folders, spec
from zoo.console import plain
from zoo.errors import DataError
from zoo.spec import DataSet

WEAKEST = 20
"""Most classes that are printed, the weakest first if there are more."""
OPTIMISTIC = "selected on these test images (select_on=test): optimistic"


SLOWEST = 12
"""Most operators that are printed."""

UNCUT = 1 << 16
"""Columns of a table that is read by a program or written to a file."""


class _Console(Console):
    """A console that leaves a closed pipe to its caller; rich's own exits with 1."""

    def on_broken_pipe(self) -> None:
        """Raise the error that rich has caught."""
        raise


def out() -> Console:
    """A console on stdout that wraps at the width of a terminal only; rich respects NO_COLOR."""
    width = None if sys.stdout.isatty() else UNCUT
    return _Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


def percent(share: float | None) -> str:
    """0.9412 as ``94.1``; nothing for None."""
    return "" if share is None else f"{100 * share:.1f}"


def amount(text: str) -> str:
    """``1234.5`` as ``1,234``, ``0.012345`` as ``0.0123``."""
    value = float(text)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def make(columns: Iterable[str], rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """A table whose columns starting with ``>`` are aligned right."""
    table = Table(
        title=plain(title) or None, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0)
    )
    for column in columns:
        table.add_column(plain(column.lstrip(">")), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(plain(str(cell)) for cell in row))
    return table


def records(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows of a table for JSON: cells as :func:`value`, an interval as its two ends.

    >>> records(["run", ">n", "95 % interval", ">macro %"], [["a", "1,000", "59.9 to 80.7", ""]])
    [{'run': 'a', 'n': 1000, '95 % interval': [59.9, 80.7], 'macro %': None}]
    """
    found = []
    for row in rows:
        cells: dict[str, Any] = {}
        for column, cell in zip(columns, map(str, row)):
            ends = cell.split(" to ") if "interval" in column else []
            kept = [value(end) for end in ends] if len(ends) == 2 else value(cell) if column.startswith(">") else cell or None
            cells[column.lstrip(">")] = kept
        found.append(cells)
    return found


def value(text: str) -> int | float | str | None:
    """A cell for JSON: a number where it is one, None where it is empty."""
    for kind in (int, float):
        try:
            number = kind(re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    return text or None


def evaluation(
    split: str, classes: Sequence[str], result: Any, counts: Sequence[int] = (), facts: Mapping[str, Any] | None = None
) -> None:
    """The overall line, one row per class with its Wilson interval, many/medium/few shots and the worst confusion pairs.

    ``counts`` are the training images of each class, where they are known; ``facts`` may hold ``chosen_on``.
    """
    summary = result.summary(classes, counts) | (facts or {})
    _evaluation(split, summary, [(name, *row) for name, row in zip(classes, result.per_class)], counts)


def result(folder: Path) -> None:
    """The test result of a run folder, from its files."""
    found = run_folders.result(folder, "n", "accuracy", "low", "high", "macro", "ece")
    if not found:
        return
    rows = [
        (r["class"], int(r["n"]), int(r["correct"]), *(float(r[k]) if r[k] else None for k in ("accuracy", "low", "high")))
        for r in csv_files.read(folder / "per_class.csv")
    ]
    _evaluation("test", found, rows, files.read_facts(folder / "env.json").get("counts", ()))


def profile(folder: Path) -> None:
    """Where the time of a run went: its parts, and the slowest operators of the traced steps (``profile.csv``)."""
    rows = csv_files.read(folder / "profile.csv")
    for kind, title in {"part": "time of training", "operator": "slowest operators of the traced steps"}.items():
        cells = [
            (row["name"], f"{int(row['calls']):,}", amount(row["ms_per_call"]), amount(row["seconds"]), percent(float(row["share"])))
            for row in rows if row["kind"] == kind
        ]  # fmt: skip
        if cells:
            out().print(make([kind, ">calls", ">ms per call", ">seconds", ">%"], cells[:SLOWEST], title))


def _evaluation(split: str, found: Mapping[str, Any], rows: Sequence[Sequence[Any]], counts: Sequence[int]) -> None:
    console = out()
    interval = f"[{percent(found['low'])}, {percent(found['high'])}]"
    console.print(
        f"{split:9} {percent(found['accuracy'])} % {interval} of {found['n']:,} images · macro {percent(found['macro'])} % · "
        f"ECE {percent(found['ece'])} %"
    )
    if found.get("chosen_on") == "test":
        console.print(f"{'':9} {OPTIMISTIC}")
    counted = [(*row, counts[at] if len(counts) == len(rows) else None) for at, row in enumerate(rows)]
    if cut := len(rows) > WEAKEST:
        counted = sorted((row for row in counted if row[3] is not None), key=lambda row: row[3])[:WEAKEST]
    head, cells = ["class", ">n", ">correct", ">%", "95 % interval"], []
    for name, n, right, share, low, high, trained in counted:
        cells.append([name, f"{n:,}", f"{right:,}", percent(share), f"{percent(low)} to {percent(high)}" if n else ""])
        if trained is not None:
            cells[-1].insert(1, f"{trained:,}")
    if len(counts) == len(rows):
        head.insert(1, ">trained on")
    console.print(make(head, cells))
    if cut:
        console.print(f"the {WEAKEST} weakest of {len(rows)} classes; all are in per_class.csv")
    _shots(console, found.get("shots", ()))
    _pairs(console, found.get("worst_pairs", ())[:3])


def _shots(console: Console, shots: Sequence[Mapping[str, Any]]) -> None:
    cells = []
    for s in shots:
        low, high = s.get("macro_low"), s.get("macro_high")  # missing in older runs, None without images
        ends = "" if low is None else f"{percent(low)} to {percent(high)}"
        cells.append((s["name"], spec.shots_text(s["name"]), s["classes"], f"{s['n']:,}", percent(s["macro"]), ends))
    if cells:
        console.print(make(("shots", "training images", ">classes", ">n", ">mean %", "95 % interval"), cells))


def _pairs(console: Console, pairs: Sequence[Mapping[str, Any]]) -> None:
    """``cat and dog``: number of confusions in each direction, and their share of both classes' images."""
    cells = [
        (f"{p['first']} and {p['second']}", f"{p['there']:,} + {p['back']:,}", f"of {p['n']:,}", percent(p["share"]))
        for p in pairs
    ]
    if cells:
        console.print(make(("confused pair", ">first as second + back", ">images of both", ">%"), cells))


def checked(data: DataSet) -> None:
    """The readable images of a data set by split, and its digest."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    rows = [(split, f"{len(part):,}", len(set(part.targets.tolist()))) for split, part in splits.items() if len(part)]
    console = out()
    console.print(make((data.name, ">images read", ">classes"), rows))
    console.print(f"digest {data.digest}")


def predictions(each: Iterable[Mapping[str, Any]], *, as_json: bool, as_csv: bool = False) -> None:
    """A line per image, in CSV per class and as soon as it is known; DataError after them if a file could not be read.

    After an interrupt, the answers so far are printed.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        writer.writerow(("file", "rank", "class", "probability"))
    answers: list[Mapping[str, Any]] = []
    try:
        for answer in each:
            answers.append(answer)
            if "error" in answer:
                print(f"{plain(answer['file'])}: error: {plain(answer['error'])}", file=sys.stderr)
            for rank, (name, share) in enumerate(answer.get("top", ()) if as_csv else (), 1):
                writer.writerow((csv_files.quoted(plain(answer["file"])), rank, csv_files.quoted(plain(name)), share))
            if as_csv:
                sys.stdout.flush()  # an interrupt loses none of them
    finally:
        if answers and as_json:
            print(json.dumps(answers))
        elif answers and not as_csv:
            rows = [(a["file"], "  ".join(f"{name} {percent(p)} %" for name, p in a["top"])) for a in answers if "top" in a]
            if rows:
                out().print(make(("file", "class and probability"), rows))
    if bad := [answer for answer in answers if "error" in answer]:
        rest = "the other results are above" if len(bad) < len(answers) else "replace them"
        raise DataError(f"{len(bad)} of {len(answers)} images cannot be read ({bad[0]['file']!r} first); {rest}")


def doctor(rows: Iterable[tuple[str, str, str]]) -> None:
    """Components that are active, absent or broken, with the remedy."""
    out().print(make(("part", "state", "detail"), rows))
