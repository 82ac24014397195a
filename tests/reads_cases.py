"""What zoo reads and what it rejects: the rows are tests, and ``docs/reads.md`` is generated from them.

A module ``reads_<kind>.py`` next to this one has a list ``CASES`` of the rows of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """An input of some ``kind``, what zoo ``does`` with it (the text that the user sees), and how to ``write`` the input to a path."""

    kind: str
    input: str
    does: str
    write: Callable[[Path], object]
    code: int = 0
    """Exit code of the command."""
