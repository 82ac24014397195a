"""Folders of images: find the files, decode them once in parallel, keep the pixels in one memory-mapped array."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from zoo import sampling
from zoo.data._image import SUFFIXES, read_image
from zoo.files import publish, publish_text
from zoo.spec import DataError, DataSet, Split

Listing = list[tuple[Path, int]]
"""Files with their class number."""


def cache_folder() -> Path:
    """``$ZOO_CACHE``, else ``$XDG_CACHE_HOME/zoo``, else ``~/.cache/zoo``."""
    if found := os.environ.get("ZOO_CACHE"):
        return Path(found)
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
    return [*([Path(given) / name, Path(given)] if given else []), cache_folder() / "data" / name]


def check_folder(folder: Path) -> None:
    """DataError unless ``folder`` is a folder with something in it."""
    full = folder.absolute()
    if not folder.exists():
        raise DataError(f"no data folder ({full}); check --data-dir")
    if not folder.is_dir():
        raise DataError(f"data folder is a file ({full}); give the folder that holds the images with --data-dir")
    if not any(folder.iterdir()):
        raise DataError(f"data folder is empty ({full}); check --data-dir")


def class_names(folder: Path) -> list[str]:
    """Names of the class folders, sorted; hidden ones are none."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def scan(folder: Path, classes: Sequence[str]) -> tuple[Listing, list[str]]:
    """Image files of each class in sorted order, and notes on files that are none.

    Raises:
        DataError: a class without an image.
    """
    found: Listing = []
    other: list[str] = []
    for number, name in enumerate(classes):
        inside = (
            sorted(path for path in (folder / name).iterdir() if not path.name.startswith("."))
            if (folder / name).is_dir()
            else []
        )
        images = [path for path in inside if path.suffix.lower() in SUFFIXES]
        other += [str(path.relative_to(folder)) for path in inside if path.suffix.lower() not in SUFFIXES]
        if not images:
            raise DataError(f"class has no images ({(folder / name).absolute()}); add some or remove the folder")
        found += [(path, number) for path in images]
    return found, [f"{len(other)} files are no images and were left out ({', '.join(other[:3])})"] if other else []


def square(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) resized so that the shorter side is ``side`` (antialiased bilinear), centre cut: (side, side, 3)."""
    height, width = image.shape[:2]
    if (height, width) != (side, side):
        scale = side / min(height, width)
        size = max(side, round(width * scale)), max(side, round(height * scale))
        picture = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        image = np.asarray(picture.crop((left, top, left + side, top + side)))
    return image


def load(listing: Listing, side: int, name: str, tell: Callable[[str], None] = lambda line: None) -> np.ndarray:
    """(N, side, side, 3) uint8, memory-mapped from the cache; decoded into it first if it isn't there.

    The cache is keyed by paths, sizes and modification times. DataError names each image that cannot be read (up to 3).
    """
    key = hashlib.sha256(str(side).encode())
    for path, _ in listing:
        state = path.stat() if path.exists() else None
        key.update(
            f"{path.absolute()}|{state and state.st_size}|{state and state.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
        )
    cached = cache_folder() / "images" / f"{name}-{side}-{key.hexdigest()[:16]}.npy"
    if not cached.is_file():
        tell(f"decoding {len(listing):,} images of {name} once")
        publish(cached, lambda temporary: _decode([path for path, _ in listing], side, temporary))
    return np.load(cached, mmap_mode="c")


def _decode(paths: Sequence[Path], side: int, target: Path) -> None:
    images = np.lib.format.open_memmap(target, "w+", np.uint8, (len(paths), side, side, 3))
    bad: list[str] = []

    def one(number: int) -> None:
        try:
            images[number] = square(read_image(paths[number]), side)
        except DataError as error:
            bad.append(str(error))

    with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside the interpreter lock
        list(pool.map(one, range(len(paths)), chunksize=64))
    images.flush()
    if bad:
        raise DataError(
            f"{len(bad)} of {len(paths)} images cannot be read: {'; '.join(sorted(bad)[:3])}; replace or remove them"
        )


def assemble(
    name: str,
    classes: Sequence[str],
    train: tuple[np.ndarray, np.ndarray, Sequence[str]],
    test: tuple[np.ndarray, np.ndarray, Sequence[str]],
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    val: float,
    seed: int,
    notes: Sequence[str] = (),
) -> DataSet:
    """A data set from (images, targets, file names) of training and test; validation is carved from training."""
    kept, held = sampling.carve(train[1], val, seed)
    parts = [(train[0][where], train[1][where], [train[2][i] for i in where]) for where in (kept, held)]
    first, second, third = (Split(images, targets, files) for images, targets, files in (*parts, test))
    return DataSet(name, tuple(classes), first, second, third, mean, std, digest(train[0], train[1], test[0], test[1]), tuple(notes))


def digest(*arrays: np.ndarray) -> str:
    """sha256 over the bytes of arrays; kept beside a cached file so that it is computed once."""
    source = getattr(arrays[0], "filename", None)
    beside = Path(source).with_suffix(".json") if source else None
    sizes = [list(array.shape) for array in arrays] + [int(array.sum()) for array in arrays if array.ndim == 1]
    if beside and beside.is_file():
        kept = json.loads(beside.read_text(encoding="utf-8"))
        if kept["sizes"] == sizes:
            return kept["sha256"]
    found = hashlib.sha256()
    for array in arrays:
        for start in range(0, len(array), 4096):
            found.update(np.ascontiguousarray(array[start : start + 4096]).tobytes())
    if beside:
        publish_text(beside, json.dumps({"sizes": sizes, "sha256": found.hexdigest()}))
    return found.hexdigest()
