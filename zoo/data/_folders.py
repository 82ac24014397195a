"""Folders of images: find the files, decode them once in parallel, keep the pixels in one memory-mapped array."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.console import counted, say
from zoo.data._image import SUFFIXES, decode, shown
from zoo.data._parts import Part, fingerprints, part
from zoo.files import publish
from zoo.spec import DataError, DiskError

BLOCK = 128
"""Images a thread decodes before it reports."""


@dataclass(frozen=True)
class Listing:
    """Image files with their class numbers (n,) int64; ``states`` are (size, modification time) for the cache's key."""

    paths: Sequence[str]
    targets: np.ndarray
    states: Sequence[tuple[int, int]]

    def take(self, where: np.ndarray) -> Listing:
        """The files at these positions."""
        return Listing([self.paths[i] for i in where], self.targets[where], [self.states[i] for i in where])


def cache_folder() -> Path:
    """``$ZOO_CACHE``, else ``$XDG_CACHE_HOME/zoo``, else ``~/.cache/zoo``."""
    if found := os.environ.get("ZOO_CACHE"):
        return Path(found).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"


def places(folder: Path | None, name: str) -> list[Path]:
    """Folders where a data set may lie: the user's (or its child of that name), else ``$ZOO_DATA_DIR`` and the cache.

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
    return cache_folder() / "data" / name


def check_folder(folder: Path) -> None:
    """DataError unless ``folder`` is a folder with something in it that may be read."""
    full = shown(folder.absolute())
    if not folder.exists():
        raise DataError(f"no data folder ({full}); check --data-dir")
    if not folder.is_dir():
        raise DataError(f"data folder is a file ({full}); give the folder that holds the images with --data-dir")
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read the data folder ({full}, {error.strerror}); check its permissions") from error
    if empty:
        raise DataError(f"data folder is empty ({full}); check --data-dir")


def class_names(folder: Path) -> list[str]:
    """Names of the class folders, sorted; hidden ones (.git, .ipynb_checkpoints) and __MACOSX are none."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))


def scan(folder: Path, classes: Sequence[str], *, may_lack: bool = False) -> tuple[Listing, list[str]]:
    """Image files of each class, sorted by class and name, and a note that counts and names the files that are none.

    Raises:
        DataError: a class without an image (unless ``may_lack``), or an image name that is not a regular file.
    """
    paths: list[str] = []
    labels: list[int] = []
    states: list[tuple[int, int]] = []
    other = [entry.name for entry in os.scandir(folder) if not entry.is_dir() or entry.name.startswith((".", "__"))]
    for number, name in enumerate(classes):
        found, strange = _images(folder / name)
        other += [f"{name}/{file}" for file in strange]
        if not found and not may_lack:
            raise DataError(f"class has no images ({shown((folder / name).absolute())}); add some or remove the folder")
        paths += [path for path, _ in found]
        states += [state for _, state in found]
        labels += [number] * len(found)
    return Listing(paths, np.array(labels, np.int64), states), _note(folder, other)


def _images(folder: Path) -> tuple[list[tuple[str, tuple[int, int]]], list[str]]:
    found, other = [], []
    if not folder.is_dir():
        return [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
                other.append(entry.name)
            else:
                found.append((entry.path, state_of(entry)))
    return sorted(found), sorted(other)


def state_of(file: os.DirEntry[str] | Path) -> tuple[int, int]:
    """Size and modification time of an image file; DataError unless it is a regular file that is there."""
    try:
        state = file.stat()
    except OSError as error:
        link = " (dangling link)" if file.is_symlink() else ""
        raise DataError(
            f"cannot read image ({shown(os.fspath(file))}, {error.strerror}{link}); restore or remove it"
        ) from error
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"image is not a regular file ({shown(os.fspath(file))}); remove or rename it")
    return state.st_size, state.st_mtime_ns


def _note(folder: Path, other: Sequence[str]) -> list[str]:
    if not other:
        return []
    kinds = Counter(
        Path(name).name if Path(name).name.startswith((".", "__")) else Path(name).suffix or "no suffix" for name in other
    )
    listed = ", ".join(f"{shown(kind)} {count}" for kind, count in kinds.most_common(4))
    return [f"{len(other)} entries of {shown(folder)} are no images ({listed}; e.g. {shown(other[0])}): left out"]


def square(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) resized so that the shorter side is ``side`` (antialiased bilinear), centre cut: (side, side, 3)."""
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    # only the part that stays is resized: a 10,000 x 1 image would else become a million pixels wide
    left, top = (size[0] - side) / 2 / size[0] * width, (size[1] - side) / 2 / size[1] * height
    box = left, top, left + side / size[0] * width, top + side / size[1] * height
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box))


def load(listing: Listing, side: int, name: str) -> Part:
    """The images at (side, side) pixels, memory-mapped from the cache; decoded into it first if they aren't there.

    The cache is keyed by the paths, sizes and modification times of all files. Where it can't be written, the images stay
    in memory.

    Raises:
        DataError: images that cannot be read, with their number and the first three.
    """
    key = hashlib.sha256(repr((side, listing.paths, listing.states)).encode("utf-8", "surrogateescape"))
    pixels = cache_folder() / "images" / f"{name}-{side}-{key.hexdigest()[:16]}.npy"
    prints = pixels.with_suffix(".prints.npy")
    if not (pixels.is_file() and prints.is_file()):
        images = None
        try:
            publish(pixels, lambda temporary: _decode(listing.paths, _mapped(temporary, len(listing.paths), side), name))
        except DiskError as error:
            say(f"data     not cached: {error}")
            images = np.empty((len(listing.paths), side, side, 3), np.uint8)
            _decode(listing.paths, images, name)
            return part(images, listing.targets, listing.paths)
        found = fingerprints(np.load(pixels, mmap_mode="r"))
        publish(prints, lambda temporary: np.save(temporary, found))
    return Part(np.load(pixels, mmap_mode="r"), listing.targets, [shown(path) for path in listing.paths], np.load(prints))


def _mapped(path: Path, n: int, side: int) -> np.ndarray:
    """A new array in a file, its space claimed first: writing into a hole of a full disk would kill the process."""
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (n, side, side, 3))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _decode(paths: Sequence[str], images: np.ndarray, name: str) -> None:
    """Fill ``images`` from the files, two threads or more: Pillow decodes and resizes outside the interpreter lock."""
    say(f"data     decoding {len(paths):,} images of {shown(name)} (once)")
    Image.init()  # the readers are registered here, not by several threads at a time
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            blocks = [pool.submit(_fill, paths, images, start) for start in range(0, len(paths), BLOCK)]
            bad = _watch(blocks, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(
            f"{len(bad)} of {len(paths):,} images cannot be read: {'; '.join(bad[:3])}{more}; replace or remove them"
        )


def _fill(paths: Sequence[str], images: np.ndarray, start: int) -> list[str]:
    bad = []
    for number in range(start, min(start + BLOCK, len(paths))):
        try:
            images[number] = square(decode(paths[number]), images.shape[1])
        except DataError as error:
            bad.append(str(error))
    return bad


def _watch(blocks: Sequence[Future[list[str]]], n: int) -> list[str]:
    """Wait for all blocks, telling every ten seconds how far they are; the faults in the order of the files."""
    for block in counted(as_completed(blocks), n, "data     decoded", BLOCK):
        block.result()
    return [fault for block in blocks for fault in block.result()]
