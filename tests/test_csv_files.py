"""CSV files: written values are read back, and no cell is a formula."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo import csv_files

NAMES = [
    "=1+1",
    "+a",
    "-a",
    "@a",
    "\ta",
    "'a",
    "''=a",
    "a",
    "",
    "a,b",
    'a"b',
    "a\nb",
    "\udcff",
    "ü",
    "a\u2028b",
    "a\x0cb",
    "a\x85b",
    "a\x1cb",
]


def test_round_trip_without_formulas(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    csv_files.write(path, ["=class", "n"], [[name, -1.5] for name in NAMES])
    assert csv_files.read(path) == [{"=class": name, "n": "-1.5"} for name in NAMES]
    cells = [line.split(b",")[0].strip(b'"') for line in path.read_bytes().splitlines()]
    assert not [cell for cell in cells if cell[:1] in (b"=", b"+", b"-", b"@", b"\t")]


def test_numbers_are_no_formulas(tmp_path: Path) -> None:
    csv_files.write(tmp_path / "x.csv", ["class"], [["-1"], ["+1.5"], ["-1+2"], ["-"]])
    assert (tmp_path / "x.csv").read_text().split() == ["class", "-1", "+1.5", "'-1+2", "'-"]


@pytest.mark.parametrize("text", ["a,b\n1\n", "a,b\n1,2,3\n", 'a\n"x'])
def test_a_damaged_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        csv_files.records(text)
