"""CSV files as zoo writes and reads them: UTF-8, with no cell that a spreadsheet reads as a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.files import publish

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
"""A text with such a first character that is not a number is prefixed with an apostrophe, so that spreadsheets show it as text; reading removes it."""


def write(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Publish a table; a text that looks like a formula is prefixed with an apostrophe."""

    def to(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([quoted(name) for name in header])
            writer.writerows([quoted(cell) for cell in row] for row in rows)

    publish(path, to)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table that :func:`write` wrote, by column.

    Raises:
        OSError, ValueError: the file cannot be read, or is not a CSV file in UTF-8.
    """
    return records(path.read_text(encoding="utf-8", errors="surrogateescape"))


def records(text: str) -> list[dict[str, str]]:
    """:func:`lines`, each keyed by the header; ValueError for a row with a different number of cells."""
    head, *rest = lines(text) or [[]]
    if any(len(row) != len(head) for row in rest):
        raise ValueError("a row and the header differ in their number of cells")
    return [dict(zip(head, row)) for row in rest]


def lines(text: str) -> list[list[str]]:
    """The cells of a CSV text, without the apostrophes of :func:`write`; ValueError if it is not CSV."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return [[cell.removeprefix("'") for cell in row] for row in rows if row]


def quoted(cell: Any) -> Any:
    """A cell as written: a text that looks like a formula is prefixed with an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) and not NUMBER.fullmatch(cell) else cell
