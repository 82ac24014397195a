"""Folders of images: find the files, decode them once in parallel, keep the pixels in one memory-mapped array."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from zoo.console import counted, print_line
from zoo.data._image import SUFFIXES, decode, shown
from zoo.data._parts import Part, fingerprints, part, unreadable
from zoo.errors import DataError, DiskError
from zoo.files import publish, publish_text

BLOCK = 128
"""Files a thread works through before it reports."""
T = TypeVar("T")


def stored_side(size: int) -> int:
    """Images are kept at 8/7 of the network's input, 256 for 224, so that training can crop at random."""
    return round(size * 8 / 7)


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


def scan(folder: Path, classes: Sequence[str]) -> tuple[Listing, list[str]]:
    """Image files of each class, sorted by class and name; notes that count and name files that are none and empty classes.

    Raises:
        DataError: no image at all.
    """
    paths: list[str] = []
    labels: list[int] = []
    states: list[tuple[int, int]] = []
    other = [entry.name for entry in os.scandir(folder) if not entry.is_dir() or entry.name.startswith((".", "__"))]
    for number, name in enumerate(classes):
        found, strange = _images(folder / name)
        other += [f"{name}/{file}" for file in strange]
        paths += [path for path, _ in found]
        states += [state for _, state in found]
        labels += [number] * len(found)
    if not paths:
        raise DataError(f"no images in the class folders ({shown(folder.absolute())}); add some or remove the folder")
    notes = _note(folder, other)
    if empty := [name for name, n in zip(classes, np.bincount(labels, minlength=len(classes))) if not n]:
        notes.append(f"{len(empty)} classes have no image in {shown(folder)} ({', '.join(map(shown, empty[:3]))})")
    return Listing(paths, np.array(labels, np.int64), states), notes


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
    """Size and modification time of an image file; (-1, 0) if it is no regular file, which decoding then names."""
    try:
        state = file.stat()
    except OSError:
        return -1, 0
    return (state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else (-1, 0)


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

    The cache is keyed by the content of all files, so a folder that was moved or copied is not decoded again. Images that
    cannot be read are left out and told in ``bad``. Where the cache can't be written, the images stay in memory.

    Raises:
        DataError: none of the images can be read.
    """
    n = len(listing.paths)
    pixels = cache_folder() / "images" / f"{_content(listing)}-{side}.npy"
    prints = pixels.with_suffix(".prints.npy")
    if not (pixels.is_file() and prints.is_file()):
        try:
            publish(pixels, lambda temporary: _decode_all(listing.paths, _mapped(temporary, n, side), name))
        except DiskError as error:
            print_line(f"data     not cached: {error}")
            images = np.empty((n, side, side, 3), np.uint8)
            bad = _decode(listing.paths, images, name)
            good = _without(bad, n)
            read = listing.take(good)
            return replace(part(images[good] if bad else images, read.targets, read.paths), bad=tuple(bad.values()))
        except _Unreadable as error:
            return replace(load(listing.take(_without(error.bad, n)), side, name), bad=tuple(error.bad.values()))
        found = fingerprints(np.load(pixels, mmap_mode="r"))
        publish(prints, lambda temporary: np.save(temporary, found))
    return Part(np.load(pixels, mmap_mode="r"), listing.targets, [shown(path) for path in listing.paths], np.load(prints))


class _Unreadable(Exception):
    """Images that cannot be read, by position."""

    def __init__(self, bad: dict[int, str]) -> None:
        self.bad = bad


def _without(bad: dict[int, str], n: int) -> np.ndarray:
    """The positions that are left; DataError if there are none."""
    if n and len(bad) == n:
        raise unreadable(list(bad.values()), n)
    return np.setdiff1d(np.arange(n), list(bad))


def _content(listing: Listing) -> str:
    """Digest of the files' contents in order; files whose paths, sizes and times are known are not read for it again."""
    state = hashlib.sha256(repr((listing.paths, listing.states)).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    known = cache_folder() / "images" / f"{state}.content"
    if known.is_file():
        return known.read_text(encoding="utf-8")
    digests = _each(lambda number: _digest(listing.paths[number], listing.states[number]), len(listing.paths), "read")
    content = hashlib.sha256(b"".join(digests)).hexdigest()[:24]
    with contextlib.suppress(DiskError):
        publish_text(known, content)
    return content


def _digest(path: str, state: tuple[int, int]) -> bytes:
    if state[0] < 0:
        return bytes(32)
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return bytes(32)  # decoding names it


def _mapped(path: Path, n: int, side: int) -> np.ndarray:
    """A new array in a file, its space claimed first: writing into a hole of a full disk would kill the process."""
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (n, side, side, 3))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _decode_all(paths: Sequence[str], images: np.ndarray, name: str) -> None:
    if bad := _decode(paths, images, name):
        raise _Unreadable(bad)


def _decode(paths: Sequence[str], images: np.ndarray, name: str) -> dict[int, str]:
    """Fill ``images`` from the files, several at a time: Pillow decodes and resizes outside the interpreter lock; the faults."""

    def fill(number: int) -> str:
        try:
            images[number] = square(decode(paths[number]), images.shape[1])
        except DataError as error:
            return str(error)
        return ""

    print_line(f"data     decoding {len(paths):,} images of {shown(name)} (once)")
    Image.init()  # the readers are registered here, not by several threads at a time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = _each(fill, len(paths), "decoded")
    return {number: fault for number, fault in enumerate(told) if fault}


def _each(do: Callable[[int], T], n: int, done: str) -> list[T]:
    """``do`` of each number below ``n`` in threads, in order, telling every ten seconds how far they are."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(threads)
    try:
        blocks = [
            pool.submit(lambda numbers: [do(number) for number in numbers], range(start, min(start + BLOCK, n)))
            for start in range(0, n, BLOCK)
        ]
        for block in counted(as_completed(blocks), n, f"data     {done}", BLOCK):
            block.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return [result for block in blocks for result in block.result()]
