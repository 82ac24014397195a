"""Decode image files once, in parallel, and store their pixels in a cache that is checked on use.

A set has two files in ``images/`` of the cache folder, named by the content of its image files and the side: ``.pixels`` has
the images in order, ``.prints`` a line of JSON and a fingerprint of 16 bytes per image.
Memory is bounded by the blocks that are decoded at a time, not by the set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from zoo.console import counted, print_line
from zoo.data._folders import Listing
from zoo.data._image import decode, shorter_side, shown
from zoo.data._parts import Part, listed
from zoo.data._pixels import PRINT_BYTES, Cached, Decoded, View, fingerprint, square
from zoo.errors import DataError, DiskError
from zoo.files import TEMPORARY, as_disk_error, cache_folder, held, publish, publish_text
from zoo.spec import ImageArray
from zoo.thread_settings import cores

FORMAT = 2
"""Version of the cache: increased whenever the same file would be decoded to other pixels."""
BLOCK = 128
"""Files per block of a thread, fewer if they would exceed :data:`BLOCK_BYTES` of pixels."""
BLOCK_BYTES = 8 << 20
MOST_HELD = 1 << 30
"""Largest set in bytes that is held in memory if the cache cannot be written; larger sets are decoded on every use."""
T = TypeVar("T")


@dataclass(frozen=True)
class _Prints:
    """Content of a ``.prints`` file: side of the stored images, fingerprints (n, 16) uint8, indices of unreadable images."""

    stored: int
    prints: np.ndarray
    bad: list[int]


def load(listings: Mapping[str, Listing], side: int, name: str) -> dict[str, Part]:
    """The images of each split of the set ``name`` at (side, side) pixels, from the cache, which is filled first if needed.

    The cache is keyed by the content of all files, so a folder that was moved or copied is not decoded again. Images are
    stored no larger than the files, at one side in all splits: fingerprints are of stored images, and a copy in another split
    must have the same. Images that cannot be read are skipped and listed in ``bad``. If the cache cannot be written, the
    images are held in memory or decoded on every use.

    Raises:
        DataError: none of the images of a split can be read.
    """
    names = {split: f"{name}-{split}" for split in listings}
    found = {split: _read(listing, side, names[split]) for split, listing in listings.items()}
    stored = max(prints.stored for _, prints in found.values())
    for split, (_, prints) in found.items():
        if prints.stored < stored:
            found[split] = _read(listings[split], side, f"{names[split]} at {stored} pixels", stored)
    return {split: _part(*found[split], listing, names[split]) for split, listing in listings.items()}


def _read(listing: Listing, side: int, name: str, least: int = 0) -> tuple[ImageArray, _Prints]:
    """The images of one split, stored at ``least`` pixels or more."""
    pixels = cache_folder() / "images" / f"{_content(listing)}-{side}{f'-{least}' if least else ''}.pixels"
    found = _existing(pixels, len(listing.paths))
    try:
        if found is None:
            found = _made(pixels, listing.paths, side, name, least)
        return Cached(pixels, listing.paths, found.prints, found.stored, side), found
    except (DiskError, OSError) as error:
        return _uncached(listing.paths, side, name, least, str(error))


def _part(images: ImageArray, found: _Prints, listing: Listing, name: str) -> Part:
    files = [shown(path) for path in listing.paths]
    if not found.bad:
        return Part(images, listing.targets, files, found.prints)
    bad = [_fault(listing.paths[row]) for row in found.bad]
    if len(bad) == len(files):
        raise DataError(
            f"none of the {len(files):,} images of {shown(name)} can be read: {listed(bad, name)}; correct their paths or replace them"
        )
    good = np.setdiff1d(np.arange(len(files)), found.bad)
    return Part(View(images, good), listing.targets[good], [files[row] for row in good], found.prints[good], tuple(bad))


def _fault(path: str) -> str:
    """The error of an image that could not be read when it was cached."""
    try:
        decode(path)
    except DataError as error:
        return str(error)
    return f"image could not be read when it was cached ({shown(path)})"


def _made(pixels: Path, paths: Sequence[str], side: int, name: str, least: int) -> _Prints:
    """Decode the files into the cache, or wait for another process that does and use its result."""
    with as_disk_error(pixels):
        pixels.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(pixels.parent)
    with held(_lock(pixels)):
        if (found := _existing(pixels, len(paths))) is not None:
            return found
        stored = least or _stored_side(paths, side)
        prints: list[bytes] = []
        bad: list[int] = []

        def write(temporary: Path) -> None:
            with temporary.open("r+b") as file:
                for images, found_prints, faults in _decoded(paths, stored, name):
                    bad.extend(len(prints) + at for at in faults)
                    prints.extend(found_prints)
                    file.write(images.data)

        publish(pixels, write, size=len(paths) * stored**2 * 3)
        found = _Prints(stored, _rows(prints), bad)
        publish(pixels.with_suffix(".prints"), lambda temporary: temporary.write_bytes(_packed(found)))
        return found


def _uncached(paths: Sequence[str], side: int, name: str, least: int, why: str) -> tuple[ImageArray, _Prints]:
    """The images without a cache, as with one: in memory, or only their fingerprints if they would not fit."""
    small = len(paths) * side**2 * 3 <= MOST_HELD
    print_line(f"data     not cached: {why}{'' if small else '; images are decoded on every use, which is slow'}")
    stored = least or _stored_side(paths, side)
    held_images = np.empty((len(paths) if small else 0, side, side, 3), np.uint8)
    prints: list[bytes] = []
    bad: list[int] = []
    for images, found, faults in _decoded(paths, stored, name):
        for at, image in enumerate(images if small else (), len(prints)):
            held_images[at] = square(image, side)
        bad.extend(len(prints) + at for at in faults)
        prints.extend(found)
    return held_images if small else Decoded(paths, stored, side), _Prints(stored, _rows(prints), bad)


def _decoded(paths: Sequence[str], side: int, name: str) -> Iterator[tuple[np.ndarray, list[bytes], list[int]]]:
    """Blocks of images (k, side, side, 3) uint8 in order, their fingerprints and which of the k cannot be read.

    Several blocks are decoded at a time: Pillow decodes and resizes outside the interpreter lock.
    """

    def fill(rows: range) -> tuple[np.ndarray, list[bytes], list[int]]:
        images = np.zeros((len(rows), side, side, 3), np.uint8)
        faults = []
        for at, row in enumerate(rows):
            try:
                images[at] = square(decode(paths[row], side), side)
            except DataError:
                faults.append(at)
        return images, [fingerprint(image) for image in images], faults

    print_line(f"data     decoding {len(paths):,} images of {shown(name)} (once)")
    Image.init()  # register the readers before threads start
    block = max(1, min(BLOCK, BLOCK_BYTES // (side**2 * 3)))
    yield from _in_blocks(fill, len(paths), block, "decoded")


def _in_blocks(do: Callable[[range], T], n: int, block: int, done: str) -> Iterator[T]:
    """``do`` of each block of the numbers below ``n``, in threads, results in order; prints progress every ten seconds."""

    def results() -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for start in range(0, n, block):
            waiting.append(pool.submit(do, range(start, min(start + block, n))))
            if len(waiting) > 2 * threads:  # limits decoded blocks that wait for being written
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    threads = cores()
    pool = ThreadPoolExecutor(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns on odd metadata; set here, as the filters are shared by all threads
            yield from counted(results(), n, f"data     {done}", block)
    finally:
        pool.shutdown(cancel_futures=True)


def _stored_side(paths: Sequence[str], side: int) -> int:
    """Side of the stored images: ``side``, or the longest of their shorter sides if all are smaller."""
    largest = 0
    for found in _in_blocks(lambda rows: max(shorter_side(paths[row]) for row in rows), len(paths), BLOCK, "measured"):
        largest = max(largest, found)
        if largest >= side:
            return side
    return max(1, largest)


def _existing(pixels: Path, n: int) -> _Prints | None:
    """The fingerprints of a cache; None if there is no cache or, with a message, if it is damaged."""
    prints = pixels.with_suffix(".prints")
    try:
        content = prints.read_bytes()
        size = pixels.stat().st_size
    except OSError:
        return None
    found = _unpacked(content)
    if found is None or len(found.prints) != n or size != n * found.stored**2 * 3:
        print_line(f"data     the image cache is damaged ({pixels}); decoding again")
        return None
    return found


def _packed(found: _Prints) -> bytes:
    body = json.dumps({"stored": found.stored, "bad": found.bad}).encode() + b"\n" + found.prints.tobytes()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _unpacked(content: bytes) -> _Prints | None:
    digest, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    head, _, prints = body.partition(b"\n")
    fields = json.loads(head)
    return _Prints(fields["stored"], np.frombuffer(prints, np.uint8).reshape(-1, PRINT_BYTES), fields["bad"])


def _rows(prints: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(prints), np.uint8).reshape(-1, PRINT_BYTES)


def _lock(pixels: Path) -> Path:
    return pixels.with_suffix(".lock")


def _remove_stale(folder: Path) -> None:
    """Remove partial files of killed processes: temporary files that are not locked."""
    for stray in folder.glob(f".*{TEMPORARY}*"):
        owner = folder / stray.name[1:].split(".")[0]
        with contextlib.suppress(OSError, TimeoutError), held(_lock(owner.with_suffix(".pixels")), wait=False):
            stray.unlink(missing_ok=True)


def _content(listing: Listing) -> str:
    """Digest of the files' contents in order; files with a known absolute path and state are not read again."""
    base = "" if all(map(os.path.isabs, listing.paths)) else str(Path.cwd())
    identity = repr((FORMAT, base, listing.paths, listing.states)).encode("utf-8", "surrogateescape")
    state = hashlib.sha256(identity).hexdigest()[:24]
    known = cache_folder() / "images" / f"{state}.content"
    with contextlib.suppress(OSError, ValueError):
        content, check = known.read_text(encoding="utf-8").split()
        if check == _seal(state, content):
            return content
    found = hashlib.sha256(str(FORMAT).encode())
    for digests in _in_blocks(
        lambda rows: [_digest(listing.paths[row], listing.states[row][0]) for row in rows], len(listing.paths), BLOCK, "read"
    ):
        found.update(b"".join(digests))
    content = found.hexdigest()[:24]
    with contextlib.suppress(DiskError), as_disk_error(known):
        known.parent.mkdir(parents=True, exist_ok=True)
        with held(_lock(known)):  # :func:`_remove_stale` of another process respects it
            publish_text(known, f"{content} {_seal(state, content)}\n")
    return content


def _seal(state: str, content: str) -> str:
    return hashlib.sha256(f"{state} {content}".encode()).hexdigest()[:16]


def _digest(path: str, size: int) -> bytes:
    if size < 0:
        return bytes(32)
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return bytes(32)  # decoding reports it
