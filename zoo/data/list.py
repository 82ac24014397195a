"""A list of image files: a CSV or Parquet file with the columns ``path`` and ``label``, and perhaps ``split``.

The columns of a CSV file are separated by commas, tabs or semicolons. Paths are relative to the list's folder. Without a
header the first two columns are path and label.
"""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import _cache, _folders, _parts
from zoo.data._folders import Listing
from zoo.data._image import shown, suffixes
from zoo.errors import DataError, UsageError
from zoo.files import exists
from zoo.spec import DataSet, DataSpec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PATHS = ("path", "file", "filename", "filepath", "file_name", "image", "image_path", "img")
LABELS = ("label", "class", "target", "category", "labels", "class_name")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Values of the column ``split``."""
NESTED = ("struct", "list", "map", "binary", "large_binary", "fixed_size", "large_list")
"""Types of Parquet columns that cannot hold names."""
LOOKED_AT = 100
"""Rows among which one names a file, if the first row is a header without known names."""
MOST_ROWS = 50_000_000
"""Largest number of rows of a Parquet list: a few bytes can encode any number of equal rows."""


def build(folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """Read the list at ``folder`` and its images, stored an eighth larger than ``size`` for random crops.

    Raises:
        DataError: missing, damaged, without these columns, or an image listed twice. UsageError: Parquet without pyarrow.
    """
    listings, classes, notes = listed(folder)
    assert folder is not None
    name = shown(folder.name)
    parts = _cache.load(listings, _folders.stored_side(size), name)
    return _parts.assemble(
        name, classes, parts["train"], parts["test"], mean=MEAN, std=STD, val=parts.get("val", val), seed=seed, notes=notes
    )  # fmt: skip


def listed(folder: Path | None) -> tuple[dict[str, Listing], list[str], list[str]]:
    """The image files of each split, the classes, and notes; errors as :func:`build`, which reads the images."""
    if folder is None:
        raise UsageError("no list given; pass it with --data FILE.csv")
    if not folder.is_file():
        raise DataError(f"no data file ({shown(folder.absolute())}); check --data")
    rows = _parquet(folder) if folder.suffix.lower() in (".parquet", ".pq") else _csv(folder)
    paths, names, splits = _columns(rows, folder)
    classes = _in_order(names)
    if len(classes) < 2:
        raise DataError(f"too few classes in the list ({shown(folder)}, {len(classes)}); a classifier needs at least 2")
    number = {name: at for at, name in enumerate(classes)}
    whole = _listing(folder.absolute().parent, paths, np.array([number[name] for name in names], np.int64))
    listings, notes = _split(whole, splits, folder)
    folded = Counter(name.casefold() for name in classes)
    if twins := [name for name in classes if folded[name.casefold()] > 1]:
        notes.append(f"warning: {len(twins)} classes differ only in case ({', '.join(map(shown, twins[:4]))}): not merged")
    return listings, classes, notes


def _csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            start = file.read(4096).partition("\n")[0]
            file.seek(0)
            mark = _mark(start, path)
            rows = [row for row in csv.reader(file, delimiter=mark, strict=True) if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        with path.open("rb") as binary:
            wide = binary.read(2) in (b"\xff\xfe", b"\xfe\xff")
        found = "UTF-16" if wide else f"byte 0x{error.object[error.start]:02x} is not UTF-8, perhaps Latin-1"
        raise DataError(f"cannot read the list ({shown(path)}, {found}); save it as CSV in UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read the list ({shown(path)}, {shown(str(error))[:60]}); it must be CSV in UTF-8") from error
    head = [name.strip().lower() for name in rows[0]] if rows else []
    named = set(head) & set(PATHS), set(head) & set(LABELS)
    if not rows or (all(named) and len(rows) == 1):
        raise DataError(f"list is empty ({shown(path)}); write path,label on each line")
    if not all(named):
        if not _of_image(rows[0], path) and (any(named) or any(_of_image(row, path) for row in rows[1:LOOKED_AT])):
            raise _unnamed(path, rows[0])
        head, rows = ["path", "label", "split"], [[], *rows]
    if short := next((number for number, row in enumerate(rows[1:], 1) if len(row) < min(len(head), 2)), None):
        raise DataError(f"no label ({shown(path)}, image {short}, {shown(','.join(rows[short]))[:60]}); write path,label")
    return [dict(zip(head, row)) for row in rows[1:]]


def _mark(start: str, path: Path) -> str:
    """What separates the cells of a list, by its first line: the mark that gives a header, else a file's name, else most cells."""

    def cells(mark: str) -> tuple[bool, bool, int]:
        row = next(csv.reader([start], delimiter=mark), [])
        names = {cell.strip().lower() for cell in row}
        return bool(names & {*PATHS} and names & {*LABELS}), _names_file(row, path), len(row)

    return max((",", "\t", ";"), key=cells)


def _names_file(row: Sequence[str], path: Path) -> bool:
    """Whether a cell of a row of the list at ``path`` names a file that exists."""
    return any(_folders.state_of(Path(_place(path.absolute().parent, cell.strip())))[0] >= 0 for cell in row)


def _of_image(row: Sequence[str], path: Path) -> bool:
    """Whether a row names a file, perhaps one that is missing, so that it is no header."""
    return _names_file(row, path) or any(cell.strip().lower().endswith(suffixes()) for cell in row)


def _place(base: Path, path: str) -> str:
    """An image of a list in the folder ``base``; of a path with the backslashes of Windows, the file that it means."""
    place = base / path
    if "\\" in path and not exists(place) and exists(other := base / path.replace("\\", "/")):
        return str(other)
    return str(place)


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            f"a Parquet list needs pyarrow ({shown(path)}); install it with: pip install pyarrow, or write the list as CSV"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            kinds = {name: str(file.schema_arrow.field(name).type) for name in file.schema_arrow.names}
            wanted = [name for name in kinds if name.strip().lower() in (*PATHS, *LABELS, "split")]
            _check_kinds({name: kinds[name] for name in wanted} or kinds, file.metadata.num_rows, path)
            rows: list[dict[str, Any]] = file.read(columns=wanted).to_pylist()
    except DataError:
        raise
    except Exception as error:  # one boundary around the parser
        raise DataError(
            f"cannot read the list ({shown(path)}, {shown(str(error).partition(chr(10))[0])[:60]}); it must be a Parquet file"
        ) from error
    return [{key.strip().lower(): value for key, value in row.items()} for row in rows]


def _check_kinds(kinds: dict[str, str], rows: int, path: Path) -> None:
    """DataError if a column has neither text nor numbers, such as images, or the list is empty."""
    if not set(map(str.lower, map(str.strip, kinds))) & {*PATHS, *LABELS}:
        raise _unnamed(path, list(kinds))
    if odd := next((name for name, kind in kinds.items() if kind.startswith(NESTED)), None):
        raise DataError(
            f"column {shown(odd)} is not text ({shown(path)}, {kinds[odd][:40]}); it must have the names of the image files"
        )
    if not rows:
        raise DataError(f"list is empty ({shown(path)}); write a path and a label in each row")
    if rows > MOST_ROWS:
        raise DataError(f"list is too long ({shown(path)}, {rows:,} rows); at most {MOST_ROWS:,}")


def _unnamed(path: Path, head: Sequence[str]) -> DataError:
    return DataError(f"no columns path and label ({shown(path)}, {shown(', '.join(head))[:60]}); name them so")


def _columns(rows: Sequence[dict[str, Any]], path: Path) -> tuple[list[str], list[str], list[str]]:
    """Paths, labels as text and splits ("" if there is no such column)."""
    head = list(rows[0]) if rows else []
    file, label = (next((name for name in names if name in head), None) for names in (PATHS, LABELS))
    if file is None or label is None:
        raise _unnamed(path, head)
    found: tuple[list[str], list[str], list[str]] = [], [], []
    for number, row in enumerate(rows, 1):
        values = [str(row.get(key) if row.get(key) is not None else "").strip() for key in (file, label, "split")]
        values[1] = unicodedata.normalize("NFC", values[1])  # macOS writes an accent as a character after its letter
        if not values[0] or not values[1]:
            raise DataError(
                f"no {'path' if not values[0] else 'label'} ({shown(path)}, image {number}); fill it in or remove the line"
            )
        if values[2] and values[2].lower() not in SPLITS:
            raise DataError(f"no split {shown(values[2])[:30]!r} ({shown(path)}, image {number}); write train, val or test")
        for values_of, value in zip(found, values):
            values_of.append(value)
    return found


def _in_order(names: Iterable[str]) -> list[str]:
    """The classes: numbers by their value, names by the alphabet."""
    found = set(names)
    return (
        sorted(found, key=lambda name: (int(name), name))
        if all(name.isdecimal() and len(name) < 20 for name in found)
        else sorted(found)
    )


def _listing(base: Path, paths: Sequence[str], targets: np.ndarray) -> Listing:
    full = [_place(base, path) for path in paths]
    seen: dict[str, int] = {}
    for number, path in enumerate(full, 1):
        if seen.setdefault(path, number) != number:
            raise DataError(f"image listed twice ({shown(path)}, images {seen[path]} and {number} of the list); remove one")
    return Listing(full, targets, [_folders.state_of(Path(path)) for path in full])


def _split(whole: Listing, splits: Sequence[str], path: Path) -> tuple[dict[str, Listing], list[str]]:
    kinds = np.array([SPLITS.get(split.lower(), "") for split in splits])
    notes = []
    found = {split: whole.take(np.flatnonzero(kinds == split)) for split in ("train", "val", "test") if (kinds == split).any()}
    if "train" not in found:
        if found:
            raise DataError(f"no training images ({shown(path)}, splits {', '.join(found)}); set split to train in some rows")
        found["train"] = whole
    elif lost := int((kinds == "").sum()):
        raise DataError(
            f"{lost:,} images have no split ({shown(path)}, image {int(np.argmax(kinds == '')) + 1} first); fill in the column"
        )
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
        notes.append("no test images in the list: split val is the test set, and validation is split from training")
    if "test" not in found:
        train = found["train"]
        kept, held, note = _parts.fixed_fifth(train.targets, shown(path), "split column")
        found |= {"train": train.take(kept), "test": train.take(held)}
        notes.append(note)
    return found, notes


SPECS = {
    "list": DataSpec(
        build=build,
        classes=0,
        shape=(3, 224, 224),
        mean=MEAN,
        std=STD,
        counts=(0, 0),
        margin=True,
        source="a CSV or Parquet file with path and label",
        recipe={"data.augment": ["rcrop", "flip"]},
    ),
}
