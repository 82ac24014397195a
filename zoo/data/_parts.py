"""Combine parts into a data set: splits, digest, and a check for leaks from training to test."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo import sampling
from zoo.data._folders import cache_folder
from zoo.data._image import shown
from zoo.data._pixels import PRINT_BYTES, View, fingerprint
from zoo.errors import DataError, DiskError
from zoo.files import publish_text
from zoo.spec import DataSet, ImageArray, Split

LISTED = 10
"""Number of unreadable images above which they are listed in a file."""


@dataclass(frozen=True)
class Part:
    """Images (n, side, side, 3) uint8, targets (n,) int64, a name and 16 bytes of blake2b for each image."""

    images: ImageArray
    targets: np.ndarray
    files: Sequence[str]
    prints: np.ndarray
    bad: Sequence[str] = ()
    """Errors of the skipped images, one line each."""


class UnreadableImages(DataError):
    """Images that cannot be read, one line each; ``data`` is the data set without them."""

    bad: Sequence[str]
    data: DataSet
    carved: bool
    """Whether training images are among them, which changes the validation split."""


def listed(bad: Sequence[str], name: str) -> str:
    """The first three errors of the unreadable images of the set ``name``; more than ten are listed in a file."""
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    if len(bad) > LISTED:
        plain = "".join(c if c.isalnum() else "_" for c in name)[:40]
        listing = cache_folder() / "unreadable" / f"{plain}.txt"
        with contextlib.suppress(DiskError):
            publish_text(listing, "\n".join(bad) + "\n")
            more += f", all listed in {listing}"
    return f"{'; '.join(bad[:3])}{more}"


def part(images: np.ndarray, targets: np.ndarray, files: Sequence[str]) -> Part:
    """A part that is held in memory."""
    return Part(images, targets, [shown(file) for file in files], fingerprints(images))


def fingerprints(images: np.ndarray) -> np.ndarray:
    """blake2b of each image's bytes, (n, 16) uint8."""
    return np.frombuffer(b"".join(map(fingerprint, images)), np.uint8).reshape(len(images), PRINT_BYTES)


def assemble(
    name: str,
    classes: Sequence[str],
    train: Part,
    test: Part,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    val: float | Part,
    seed: int,
    notes: Sequence[str] = (),
) -> DataSet:
    """A data set of training and test parts; validation is split from training, or is a separate part.

    The digest covers the pixels, targets and class names of all images in file order, so it is the same for every split.

    Raises:
        UnreadableImages: a part has unreadable images; the set of the others is the error's ``data``.
    """
    parts = [train, test]
    if isinstance(val, Part):
        parts.append(val)
        learn, held = (Split(each.images, each.targets, each.files) for each in (train, val))
    else:
        learn, held = (_pick(train, where) for where in sampling.carve(train.targets, val, seed))
    found = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape"))
    for each in parts:
        found.update(np.ascontiguousarray(each.prints).data)
        found.update(each.targets.astype("<i8").data)
    last = Split(test.images, test.targets, test.files)
    remarks = (*notes, *_leaks(train, test))
    named = tuple(shown(c) for c in classes)
    data = DataSet(name, named, learn, held, last, mean, std, found.hexdigest(), remarks, manifest=_manifest(parts))
    if bad := [fault for each in parts for fault in each.bad]:
        n = len(bad) + sum(len(each.targets) for each in parts)
        error = UnreadableImages(
            f"{len(bad)} of {n:,} images cannot be read: {listed(bad, name)}; replace or remove them, or use --skip-bad"
        )
        error.bad, error.data, error.carved = bad, data, bool(train.bad) and not isinstance(val, Part)
        raise error
    return data


def _manifest(parts: Sequence[Part]) -> np.ndarray:
    """(n, 2) uint64: for each sample 8 bytes of blake2b of the end of its path, independent of the location of the set, and 8 of its content."""
    tails = (_tail(file) for each in parts for file in each.files)
    names = b"".join(hashlib.blake2b(tail.encode("utf-8", "surrogateescape"), digest_size=8).digest() for tail in tails)
    contents = [
        np.ascontiguousarray(each.prints[:, :8]).view(np.uint64)[:, 0] ^ each.targets.astype(np.uint64) for each in parts
    ]
    return np.stack([np.frombuffer(names, np.uint64), np.concatenate(contents)], axis=1)


def _pick(source: Part, where: np.ndarray) -> Split:
    images = source.images if len(where) == len(source.targets) else View(source.images, where)
    return Split(images, source.targets[where], [source.files[i] for i in where])


def _leaks(train: Part, test: Part) -> list[str]:
    """A note on test images that are, pixel by pixel, also training images."""
    first, second = (np.ascontiguousarray(each.prints[:, :8]).view(np.uint64)[:, 0] for each in (train, test))
    _, where, there = np.intersect1d(first, second, return_indices=True)
    twice = [(i, j) for i, j in zip(there, where) if (test.prints[i] == train.prints[j]).all()]
    if not twice:
        return []
    listed = ", ".join(f"{_tail(test.files[i])} = {_tail(train.files[j])}" for i, j in twice[:3])
    return [f"warning: {len(twice)} test images are also training images ({listed})"]


def _tail(file: str) -> str:
    """The end of a path: split folder, class folder and file name."""
    return "/".join(file.rsplit("/", 3)[-3:])
