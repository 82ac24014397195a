"""Arguments of ``zoo predict``: files, folders, patterns, standard input; not URLs."""

from __future__ import annotations

import contextlib
import glob
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from zoo.console import note
from zoo.data import _folders
from zoo.data._image import begins_as_image, is_image, shown, suffixes
from zoo.errors import DataError, UsageError
from zoo.files import as_utf8, exists, is_folder, is_link

MAX_BYTES = 1 << 30
"""Of standard input."""


@contextlib.contextmanager
def gathered(words: Sequence[str]) -> Iterator[list[tuple[str, Path]]]:
    """The image files of the arguments, each with its display name; those of standard input are removed at the end.

    A folder means the images in it and in its subfolders, ``*`` is expanded as by a shell, ``-`` is an image on standard
    input or a list of file names, one per line.

    Raises:
        UsageError: a URL. DataError: no images at all, or an empty standard input.
    """
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        found = [pair for word in words for pair in _found(word, Path(folder), alone=len(words) == 1)]
        yield [(as_utf8(name), path) for name, path in found]


def _found(word: str, folder: Path, *, alone: bool) -> list[tuple[str, Path]]:
    """:func:`_of`; one of several arguments without images is reported with the bad files, and the others are classified."""
    try:
        return _of(word, folder)
    except DataError:
        if alone or word == "-":
            raise
        return [(word, Path(word))]


def _of(word: str, folder: Path) -> list[tuple[str, Path]]:
    if word == "-":
        return _standard_input(folder / "stdin")
    if "://" in word:
        raise UsageError(f"cannot fetch {shown(word)}; download it, e.g. with curl -O, and name the file")
    path = Path(word)
    if is_folder(path):
        return _named(_below(path), f"no images in the folder ({shown(path.absolute())})")
    if not exists(path) and not is_link(path) and glob.has_magic(word):
        found = sorted(Path(name) for name in glob.glob(word, recursive=True))  # noqa: PTH207  (takes absolute patterns)
        return _named([name for name in found if not name.is_dir()], f"no file matches {shown(word)!r}")
    return [(word, path)]


def _named(paths: Sequence[Path], nothing: str) -> list[tuple[str, Path]]:
    if not paths:
        raise DataError(f"{nothing}; name image files, or a folder of them")
    return [(str(path), path) for path in paths]


def _below(folder: Path) -> list[Path]:
    """Image files in a folder and its subfolders, without hidden ones, sorted; a line names other files."""
    found, other = [], []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or path.is_dir():
            continue
        if path.name.lower().endswith(suffixes()) or is_image(path):
            found.append(path)
        else:
            other.append(str(inside))
    for line in _folders.not_images(folder, other):
        note("data", line)
    return found


def _standard_input(path: Path) -> list[tuple[str, Path]]:
    content = sys.stdin.buffer.read(MAX_BYTES)
    if not content.strip():
        raise DataError("standard input is empty; pass an image, or one file name per line")
    if begins_as_image(content[:16]) or b"\0" in content[:4096]:
        path.write_bytes(content)
        return [("-", path)]
    names = [line.strip() for line in content.decode("utf-8", "surrogateescape").splitlines() if line.strip()]
    return [(name, Path(name)) for name in names]
