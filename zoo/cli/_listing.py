"""Entries of a registry folder as a table of plain text: importing rich would take longer than the listing."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from zoo.spec import Option

COLUMNS: dict[str, tuple[str, ...]] = {
    "models": ("input", "params", "MACs", "data"),
    "data": ("classes", "shape", "train + test"),
    "losses": ("options",),
}
NUMBERS = ("params", "MACs", "classes", "train + test")
NARROW, ROOM = 80, 36
"""Smallest width of a terminal; width of the last column below which its text moves to separate lines."""


def listing(kind: str, pattern: str, as_json: bool) -> None:
    """Print the entries of a registry folder that match a pattern."""
    import dataclasses

    from zoo import registry

    rows = {name: entry for name, entry in registry.table(kind).items() if fnmatch(name, f"*{pattern}*")}
    if as_json:
        click.echo(json.dumps(rows, default=dataclasses.asdict))
    elif not rows:
        click.echo(f"nothing matches; see zoo {kind}")
    else:
        click.echo("\n".join(_lines(kind, rows, max(NARROW, shutil.get_terminal_size((100, 24)).columns))))


def _lines(kind: str, rows: Mapping[str, Mapping[str, Any]], width: int) -> list[str]:
    """A line per entry, its text wrapped in the last column, or below the line if the terminal is narrow."""
    head = ("name", *COLUMNS[kind])
    cells = [(name, *(_cell(column, row) for column in COLUMNS[kind])) for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(head, *cells)]

    def line(row: tuple[str, ...]) -> str:
        return "  ".join(f"{cell:{'>' if column in NUMBERS else '<'}{w}}" for cell, w, column in zip(row, widths, head))

    indent = sum(widths) + 2 * len(widths)
    beside = width - indent >= ROOM
    notes = "source" if kind == "data" else "paper, weights to download" if kind == "models" else "paper"
    lines = [f"{line(head)}  {notes}" if beside else line(head).rstrip()]
    for row, entry in zip(cells, rows.values()):
        space = " " * (indent if beside else 4)
        text = textwrap.wrap(_notes(entry), width - len(space), break_long_words=False, break_on_hyphens=False)
        first = f"{line(row)}  {text.pop(0)}" if beside and text else line(row).rstrip()
        lines += [first, *(space + part for part in text)]
    return lines


def _cell(column: str, row: Mapping[str, Any]) -> str:
    if column == "input":
        return "x".join(map(str, row["input"][1:]))
    if column == "shape":
        return "x".join(map(str, row["shape"]))
    if column == "MACs":
        return f"{row['macs'] / 1e9:.2f}G" if row["macs"] >= 1e9 else f"{row['macs'] / 1e6:.1f}M"
    if column == "train + test":
        return " + ".join(f"{n:,}" for n in row["counts"]) if any(row["counts"]) else ""
    value = row.get(column) or ""
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else ", ".join(value)


def _notes(row: Mapping[str, Any]) -> str:
    """The source of an entry and the weights that can be downloaded."""
    weights = f"; weights: {', '.join(row['weights'])}" if row.get("weights") else ""
    plugin = f"; from the plug-in {row['plugin']}" if "plugin" in row else ""
    return f"{row.get('paper') or row.get('source') or ''}{weights}{plugin}"


def options(rows: Mapping[str, Option]) -> list[str]:
    """A line per setting: name, type, default, range, description."""
    head = ("setting", "type", "default", "range")
    cells = [(key, row.type, json.dumps(row.default), row.range) for key, row in rows.items()]
    widths = [min(max(map(len, column)), NARROW // 2) for column in zip(head, *cells)]
    texts = ["description", *(row.help for row in rows.values())]
    return ["  ".join([*map(str.ljust, line, widths), text]) for line, text in zip([head, *cells], texts)]
