"""Arrays of images that are read when they are indexed: a view of rows, a checked cache file, or the image files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.console import print_line
from zoo.data._image import read_image, shown
from zoo.errors import DataError
from zoo.spec import ImageArray

PRINT_BYTES = 16


def square(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) resized so that the shorter side is ``side`` (antialiased bilinear), centre-cropped: (side, side, 3)."""
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    # crop before resizing: a 10,000 x 1 image would become a million pixels wide
    left, top = (size[0] - side) / 2 / size[0] * width, (size[1] - side) / 2 / size[1] * height
    box = left, top, left + side / size[0] * width, top + side / size[1] * height
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box))


def fingerprint(image: np.ndarray) -> bytes:
    """16 bytes of blake2b of an image's pixels."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=PRINT_BYTES).digest()


class Pixels:
    """(n, side, side, 3) uint8, indexed along its first axis as a numpy array; ``np.asarray`` reads all images.

    A subclass defines ``_read``, which returns the images of an array of row numbers.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, n: int, side: int) -> None:
        self.shape = (n, side, side, 3)
        self.nbytes = n * side * side * 3
        self._numbers = np.arange(n)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = self._numbers[key]
        return self._read(rows) if rows.ndim else self._read(rows[None])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(self._numbers).astype(dtype or np.uint8, copy=False)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class View(Pixels):
    """Rows ``index`` (n,) of other images, without a copy of them."""

    def __init__(self, images: ImageArray, index: np.ndarray) -> None:
        super().__init__(len(index), images.shape[1])
        self.images, self.index = images, index

    def _read(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.images[self.index[rows]])


class Decoded(Pixels):
    """Image files that are decoded on every access, returned at ``side`` pixels as a cache of ``stored`` pixels returns them."""

    def __init__(self, paths: Sequence[str], stored: int, side: int) -> None:
        super().__init__(len(paths), side)
        self.paths, self.stored = paths, stored

    def _read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for at, row in enumerate(rows):
            images[at] = square(square(read_image(self.paths[row], self.stored), self.stored), self.shape[1])
        return images


class Cached(Pixels):
    """Images in a cache file at ``stored`` pixels, returned at ``side``.

    An image is compared with its fingerprint when it is first read. If they differ, it is decoded again from its file in
    ``paths`` and written back.

    Raises:
        DataError: when indexed; the file of a damaged image is missing or has other pixels.
    """

    def __init__(self, path: Path, paths: Sequence[str], prints: np.ndarray, stored: int, side: int) -> None:
        super().__init__(len(prints), side)
        self.path, self.paths, self.prints, self.stored = path, paths, prints, stored
        self.good = np.zeros(len(prints), bool)
        """Images that were compared with their fingerprints."""
        self._lock = threading.Lock()
        self._file = path.open("rb", buffering=0)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        images = np.zeros((len(rows), self.stored, self.stored, 3), np.uint8)
        at = 0
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(run):
                self._fill(images[at : at + len(run)], int(run[0]))
                at += len(run)
        self._check(rows, images)
        if self.stored == self.shape[1]:
            return images
        return (
            np.stack([square(image, self.shape[1]) for image in images])
            if len(images)
            else np.empty((0, *self.shape[1:]), np.uint8)
        )

    def _fill(self, images: np.ndarray, first: int) -> None:
        """Read the images from row ``first`` on; missing rows stay unchanged and fail the check."""
        buffer, start, done = images.reshape(-1).data, first * self.stored**2 * 3, 0
        with contextlib.suppress(OSError):
            while done < len(buffer) and (got := self._read_at(buffer[done:], start + done)):
                done += got

    def _read_at(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):  # pread has no file position that forked workers would share
            return os.preadv(self._file.fileno(), [buffer], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(buffer) or 0

    def _check(self, rows: np.ndarray, images: np.ndarray) -> None:
        fresh = np.flatnonzero(~self.good[rows])
        damaged = [at for at in fresh if fingerprint(images[at]) != self.prints[rows[at]].tobytes()]
        if damaged:
            print_line(f"data     {len(damaged)} images of the cache are damaged ({self.path}); decoding them again")
        for at in damaged:
            images[at] = self._repaired(int(rows[at]))
        self.good[rows[fresh]] = True

    def _repaired(self, row: int) -> np.ndarray:
        image = square(read_image(self.paths[row], self.stored), self.stored)
        if fingerprint(image) != self.prints[row].tobytes():
            raise DataError(f"image changed during use ({shown(self.paths[row])}); repeat the command")
        with contextlib.suppress(OSError), self.path.open("r+b") as file:
            file.seek(row * self.stored**2 * 3)
            file.write(image.tobytes())
        return image
