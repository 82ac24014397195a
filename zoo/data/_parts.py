"""Combine parts into a data set: splits, digest, and a check for leaks from training to test."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo import sampling
from zoo.data._image import shown
from zoo.data._pixels import PRINT_BYTES, View, fingerprint
from zoo.errors import DataError, DiskError
from zoo.files import cache_folder, publish_text
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


def fixed_fifth(targets: np.ndarray, where: str, without: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Positions for training and test of a set without a test split, and a note; ``without`` names what is missing.

    The test images are a fixed fifth of each class, whatever the seed of a run.

    Raises:
        DataError: no class has enough images.
    """
    kept, held = sampling.carve(targets, 0.2, 0)
    if not len(held):
        raise DataError(f"too few images for a test set ({where}, {len(targets)}); add some")
    return kept, held, f"no {without}: {len(held):,} images, a fixed fifth of each class, are the test set"


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
        DataError: two classes have one name where line breaks and the like are escaped.
        UnreadableImages: a part has unreadable images; the set of the others is the error's ``data``.
    """
    parts = [train, test]
    if isinstance(val, Part):
        parts.append(val)
        splits = [train, val, test]
    else:
        splits = [*(_pick(train, where) for where in sampling.carve(train.targets, val, seed)), test]
    found = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape"))
    for each in parts:
        found.update(np.ascontiguousarray(each.prints).data)
        found.update(each.targets.astype("<i8").data)
    learn, held, last = (Split(each.images, each.targets, each.files) for each in splits)
    remarks = (*notes, *leaks(*splits), *_contradictions(*splits), *_untested(classes, train, test))
    named = tuple(shown(c) for c in classes)
    if len(set(named)) < len(named):
        twice = next(each for each in named if named.count(each) > 1)
        why = ", as line breaks are written as \\n" if len(set(classes)) == len(classes) else ""
        raise DataError(f"two classes have one name ({name}, {twice}{why}); rename one")
    data = DataSet(name, named, learn, held, last, mean, std, found.hexdigest(), remarks, manifest=_manifest(parts))
    if bad := [fault for each in parts for fault in each.bad]:
        n = len(bad) + sum(len(each.targets) for each in parts)
        error = UnreadableImages(
            f"{len(bad)} of {n:,} images cannot be read: {listed(bad, name)}; replace or remove them, or use --skip-bad"
        )
        error.bad, error.data, error.carved = bad, data, bool(train.bad) and not isinstance(val, Part)
        raise error
    return data


def _untested(classes: Sequence[str], train: Part, test: Part) -> list[str]:
    """A warning for classes with training images that have no test images."""
    without = sorted({*train.targets.tolist()} - {*test.targets.tolist()}) if len(test.targets) else []
    if not without:
        return []
    names = ", ".join(shown(classes[number]) for number in without[:3]) + (", ..." if len(without) > 3 else "")
    return [
        f"warning: {len(without)} of {len(classes)} classes have no test images ({names}); the macro accuracy leaves them out"
    ]


def _manifest(parts: Sequence[Part]) -> np.ndarray:
    """(n, 2) uint64: for each sample 8 bytes of blake2b of its path inside the set, and 8 of its content."""
    tails = inside([file for each in parts for file in each.files])
    names = b"".join(hashlib.blake2b(tail.encode("utf-8", "surrogateescape"), digest_size=8).digest() for tail in tails)
    contents = [
        np.ascontiguousarray(each.prints[:, :8]).view(np.uint64)[:, 0] ^ each.targets.astype(np.uint64) for each in parts
    ]
    return np.stack([np.frombuffer(names, np.uint64), np.concatenate(contents)], axis=1)


def _pick(source: Part, where: np.ndarray) -> Part:
    images = source.images if len(where) == len(source.targets) else View(source.images, where)
    return Part(images, source.targets[where], [source.files[i] for i in where], source.prints[where])


def leaks(train: Part, val: Part, test: Part) -> list[str]:
    """A note for each two splits on images of the second that are, pixel by pixel, also in the first."""
    notes = []
    for first, second, names in (
        (train, test, ("test", "training")),
        (train, val, ("validation", "training")),
        (val, test, ("test", "validation")),
    ):
        a, b = (np.ascontiguousarray(each.prints[:, :8]).view(np.uint64)[:, 0] for each in (first, second))
        originals = {first.prints[i].tobytes(): first.files[i] for i in np.flatnonzero(np.isin(a, b)).tolist()}
        where = [i for i in np.flatnonzero(np.isin(b, a)).tolist() if second.prints[i].tobytes() in originals]
        if where:
            pairs = [(second.files[i], originals[second.prints[i].tobytes()]) for i in where[:3]]
            listed = ", ".join(f"{_tail(copy)} = {_tail(original)}" for copy, original in pairs)
            notes.append(f"warning: {len(where)} {names[0]} images are also {names[1]} images ({listed})")
    return notes


def _contradictions(train: Part, val: Part, test: Part) -> list[str]:
    """A note for each split on images that are, pixel by pixel, also in another class of it."""
    notes = []
    for name, each in (("training", train), ("validation", val), ("test", test)):
        keys = np.ascontiguousarray(each.prints).view(np.uint64).reshape(-1, 2)
        order = np.lexsort((each.targets, keys[:, 1], keys[:, 0]))
        first, second = order[:-1], order[1:]
        found = (keys[first] == keys[second]).all(1) & (each.targets[first] != each.targets[second])
        pairs = sorted(zip(second[found].tolist(), first[found].tolist()))
        if pairs:
            listed = ", ".join(f"{_tail(each.files[copy])} = {_tail(each.files[original])}" for copy, original in pairs[:3])
            notes.append(f"warning: {len(pairs)} {name} images are also in another class ({listed})")
    return notes


def _tail(file: str) -> str:
    """The end of a path, for a message."""
    return "/".join(file.rsplit("/", 3)[-3:])


def inside(files: Sequence[str]) -> list[str]:
    """Paths without the folders that all have in common, so that they do not depend on the place of the set."""
    first, last = min(files, default=""), max(files, default="")  # what these two begin with, all between begin with
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last)))
    start = first[:alike].rfind("/") + 1
    return [file[start:] for file in files]
