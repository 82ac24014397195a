"""Folders of images: location of data sets, and image files per class."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo import files, registry
from zoo.data._image import is_image, shown, suffixes
from zoo.errors import DataError

State = tuple[int, int, int, int]
"""Size, modification time, change time and inode of a file, which identify its content without reading it."""


def stored_side(size: int) -> int:
    """Images are stored at 8/7 of the network's input, 256 for 224, so that training can crop at random."""
    return round(size * 8 / 7)


@dataclass(frozen=True)
class Listing:
    """Image files with their class numbers (n,) int64, and their states, which tell the cache whether a file has changed."""

    paths: Sequence[str]
    targets: np.ndarray
    states: Sequence[State]

    def take(self, where: np.ndarray) -> Listing:
        """The files at these positions."""
        return Listing([self.paths[i] for i in where], self.targets[where], [self.states[i] for i in where])


def places(folder: Path | None, name: str) -> list[Path]:
    """Folders where a data set may be: the user's (or its child of that name), else ``$ZOO_DATA_DIR`` and the cache.

    Raises:
        DataError: the user's folder is missing, a file, or empty.
    """
    if folder is not None:
        check_folder(folder)
        return [folder / name, folder]
    given = os.environ.get("ZOO_DATA_DIR")
    return [*([Path(given).expanduser() / name] if given else []), download_folder(name)]


def download_folder(name: str) -> Path:
    """Where a data set is downloaded to."""
    return files.cache_folder() / "data" / name


def check_folder(folder: Path) -> None:
    """DataError unless ``folder`` is a readable folder that is not empty."""
    full = shown(folder.absolute())
    if not folder.exists():
        raise DataError(f"no data folder ({full}); check --data and --data-dir")
    if not folder.is_dir():
        raise DataError(f"data folder is a file ({full}); give a folder, or a file that ends in {', '.join(registry.READERS)}")
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read the data folder ({full}, {error.strerror}); check its permissions") from error
    if empty:
        raise DataError(f"data folder is empty ({full}); check --data and --data-dir")


def class_names(folder: Path) -> list[str]:
    """Names of the class folders, sorted; without hidden ones (.git, .ipynb_checkpoints) and __MACOSX."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))


def holds_images(folder: Path) -> bool:
    """Whether a folder has an image file, by file names."""
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(suffixes()) for entry in entries)


def scan(folder: Path, classes: Sequence[str]) -> tuple[Listing, list[str]]:
    """Image files of each class, sorted by class and name; notes on other files, subfolders and empty classes.

    Raises:
        DataError: no images.
    """
    paths: list[str] = []
    labels: list[int] = []
    states: list[State] = []
    deep: list[str] = []
    other = [entry.name for entry in os.scandir(folder) if not entry.is_dir() or entry.name.startswith((".", "__"))]
    for number, name in enumerate(classes):
        found, strange = _images(folder / name)
        other += [f"{name}/{file}" for file in strange]
        paths += [path for path, _ in found]
        inside = len(str(folder / name)) - len(name)
        deep += [path[inside:] for path, _ in found if os.sep in path[inside + len(name) + 1 :]]
        states += [state for _, state in found]
        labels += [number] * len(found)
    if not paths:
        raise DataError(f"no images in the class folders ({shown(folder.absolute())}); add some or remove the folder")
    notes = not_images(folder, other)
    if deep:
        place = shown(Path(deep[0]).parent)
        notes.append(f"{len(deep):,} images of {shown(folder)} are in subfolders of class folders (e.g. {place}): read too")
    if empty := [name for name, n in zip(classes, np.bincount(labels, minlength=len(classes))) if not n]:
        has = "class has" if len(empty) == 1 else "classes have"
        notes.append(f"{len(empty)} {has} no image in {shown(folder)} ({', '.join(map(shown, empty[:3]))})")
    return Listing(paths, np.array(labels, np.int64), states), notes


def _images(folder: Path) -> tuple[list[tuple[str, State]], list[str]]:
    """Files with the ending of an image or, whatever their ending, the content of one; the names of the others.

    Subfolders are read too, as patients or scenes often have one each; not hidden ones, nor links to folders, which can form a
    loop.
    """
    found: list[tuple[str, State]] = []
    other: list[str] = []
    if not folder.is_dir():
        return [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            hidden = entry.name.startswith((".", "__"))
            if not entry.name.startswith(".") and (entry.name.lower().endswith(suffixes()) or is_image(entry.path)):
                found.append((entry.path, state_of(entry)))
            elif entry.is_dir(follow_symlinks=False) and not hidden:
                below, strange = _images(Path(entry.path))
                found += below
                other += [f"{entry.name}/{name}" for name in strange]
            else:
                other.append(entry.name)
    return sorted(found), sorted(other)


def state_of(file: os.DirEntry[str] | Path) -> State:
    """The state of an image file; its size is -1 if it is not a regular file, which decoding then reports."""
    try:
        state = file.stat()
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return -1, 0, 0, 0
    if not stat.S_ISREG(state.st_mode):
        return -1, 0, 0, 0
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def not_images(folder: Path, other: Sequence[str]) -> list[str]:
    if not other:
        return []
    kinds = Counter(
        Path(name).name if Path(name).name.startswith((".", "__")) else Path(name).suffix or "no suffix" for name in other
    )
    listed = ", ".join(f"{shown(kind)} {count}" for kind, count in kinds.most_common(4))
    return [f"{len(other)} entries of {shown(folder)} are not images ({listed}; e.g. {shown(other[0])}): skipped"]
