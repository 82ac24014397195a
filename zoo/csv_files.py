"""CSV files as zoo writes and reads them: UTF-8, and no cell that a spreadsheet takes for a formula."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.files import publish

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""A text that begins so gets an apostrophe in front, at which spreadsheets show it as text; reading takes it off again."""


def write(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Publish a table; a text that begins as a formula does is quoted with an apostrophe."""

    def to(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([quoted(name) for name in header])
            writer.writerows([quoted(cell) for cell in row] for row in rows)

    publish(path, to)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table that :func:`write` wrote, by column.

    Raises:
        OSError, ValueError: the file cannot be read, or is no CSV in UTF-8.
    """
    return records(path.read_text(encoding="utf-8", errors="surrogateescape"))


def records(text: str) -> list[dict[str, str]]:
    """:func:`lines`, each by the names in the first; ValueError for one with another number of cells."""
    head, *rest = lines(text) or [[]]
    if any(len(row) != len(head) for row in rest):
        raise ValueError("a row has another number of cells than the first")
    return [dict(zip(head, row)) for row in rest]


def lines(text: str) -> list[list[str]]:
    """The cells of a CSV text, apostrophes of :func:`write` taken off; ValueError if it is none."""
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return [[cell.removeprefix("'") for cell in row] for row in rows if row]


def quoted(cell: Any) -> Any:
    """A cell as it is written: a text that begins as a formula gets an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
