"""What zoo reads and what it refuses: rows that are tests, and from which ``docs/reads.md`` is made.

A module ``reads_<kind>.py`` beside this one has a list ``CASES`` of the rows of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """An input of some ``kind``, what zoo ``does`` with it (words that a person sees), and how to ``write`` the input to a path."""

    kind: str
    input: str
    does: str
    write: Callable[[Path], object]
    code: int = 0
    """Exit code of the command."""


HEAD = """# What zoo reads and what it refuses

Each row is a test; `tools/reads` writes this page from `tests/reads_*.py`. A refused file ends with one line and the exit code
that is named.
"""


def page(cases: Iterable[Case]) -> str:
    """The rows as Markdown, a table for each kind."""
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        kinds.setdefault(case.kind, []).append(case)
    parts = [HEAD]
    for kind, rows in kinds.items():
        lines = [f"| {row.input} | {row.does} | {row.code or ''} |" for row in rows]
        parts.append("\n".join([f"## {kind}", "", "| input | what zoo does | exit code |", "|---|---|---|", *lines, ""]))
    return "\n".join(parts)
