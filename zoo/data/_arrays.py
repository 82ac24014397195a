"""Data sets stored as arrays: converted to colour, resized, and held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.data._image import shown
from zoo.data._parts import Part, assemble, part
from zoo.data._pixels import Pixels, square
from zoo.errors import DataError
from zoo.spec import DataSet, ImageArray

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
GREY_NOTE = "grey images: repeated to 3 channels"


class Scaled(Pixels):
    """Images (n, H, W, 3) uint8 that are resized to ``side`` when they are indexed."""

    def __init__(self, images: ImageArray, side: int) -> None:
        super().__init__(images.shape[0], side)
        self.images = images

    def _read(self, rows: np.ndarray) -> np.ndarray:
        side = self.shape[1]
        read = np.asarray(self.images[rows])
        if read.shape[1:3] == (side, side):
            return read
        scaled = np.empty((len(rows), side, side, 3), np.uint8)
        for at, image in enumerate(read):
            scaled[at] = square(image, side)
        return scaled


def top_of(arrays: Iterable[np.ndarray]) -> float:
    """The largest float in the arrays of one set, from which :func:`coloured` finds their range; 0 without floats."""
    return max((float(each.max(initial=0)) for each in arrays if each.dtype.kind == "f"), default=0.0)


def checked_ranges(where: str, images: Mapping[str, np.ndarray]) -> list[str]:
    """A warning for integers that are all 0 or 1; DataError if some arrays have floats of 0 to 1 and others of 0 to 255."""
    tops = {name: float(each.max(initial=0)) for name, each in images.items() if each.size and each.dtype.kind in "uif"}
    floats = [name for name in tops if images[name].dtype.kind == "f"]
    low, high = ([name for name in floats if (tops[name] > 2) == above] for above in (False, True))
    if low and high:
        ends = ", ".join(f"{name} up to {tops[name]:g}" for name in (low[0], high[0]))
        raise DataError(f"arrays have different ranges ({where}, {ends}); scale all of them to 0 to 255, or to 0 to 1")
    dark = [name for name in tops if name not in floats and tops[name] <= 1]
    return [f"warning: {name} has integers up to {tops[name]:g}, almost black; integers are of 0 to 255" for name in dark]


def coloured(values: np.ndarray, where: str, top: float) -> tuple[np.ndarray, bool]:
    """Images (n, H, W), (n, H, W, 1), (n, H, W, 3) or (n, 3, H, W) as (n, H, W, 3) uint8, and whether they are grey.

    Integers are of 0 to 255. Floats are of 0 to 255 too or, if ``top``, the largest of the set, is at most 2, of 0 to 1 with
    some tolerance for resampling.

    Raises:
        DataError: another shape or type, or values outside of these ranges.
    """
    if values.ndim == 4 and values.shape[1] in (1, 3) and values.shape[3] not in (1, 3):
        values = values.transpose(0, 2, 3, 1)
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[3] not in (1, 3) or 0 in values.shape[1:3]:
        raise DataError(f"not images ({where}, shape {values.shape}); give (n, H, W), (n, H, W, 3) or (n, 3, H, W)")
    if values.dtype.kind not in "uif" or values.dtype.itemsize > 8:
        raise DataError(f"not images ({where}, type {values.dtype}); give uint8, or floats of 0 to 1")
    if values.dtype != np.uint8:
        low, high = (float(end) for end in (values.min(initial=0), values.max(initial=0)))
        if not (low >= 0 and high <= 255):  # false for nan too
            raise DataError(f"pixels out of range ({where}, {low:g} to {high:g}); give 0 to 255, or floats of 0 to 1")
        scale = 255 if values.dtype.kind == "f" and top <= 2 else 1
        values = np.rint(values * scale).clip(0, 255).astype(np.uint8)
    grey = values.shape[3] == 1
    return (np.repeat(values, 3, axis=3) if grey else values), grey


def labels(values: np.ndarray, n: int, where: str) -> np.ndarray:
    """Class numbers (n,) int64 of an array (n,) or (n, 1) of whole numbers, or of a one-hot array (n, C)."""
    if values.ndim == 2 and values.shape[1] > 1 and set(np.unique(values)) <= {0, 1} and (values.sum(1) == 1).all():
        values = values.argmax(1)
    flat = values.reshape(-1)
    if len(flat) != n or flat.dtype.kind not in "uif" or (flat != np.floor(flat)).any() or (flat < 0).any():
        raise DataError(f"not labels ({where}, shape {values.shape}, {values.dtype}); give {n:,} class numbers from 0 on")
    return flat.astype(np.int64)


def as_part(images: np.ndarray, targets: np.ndarray, side: int, split: str) -> Part:
    """A part of images (n, H, W, 3) uint8, resized to ``side`` pixels; fingerprints are of the original images."""
    files = [shown(f"{split}[{i}]") for i in range(len(targets))]
    held = part(images, targets, files)
    given: ImageArray = Scaled(images, side)
    return Part(given, targets, files, held.prints)


def numbered(targets: Sequence[np.ndarray], where: str = "") -> list[str]:
    """Names of numbered classes: ``0``, ``1``, ..., padded so that they sort by number; with ``where``, 0 must be one of them."""
    if where and (low := min((int(each.min()) for each in targets if len(each)), default=0)) > 0:
        raise DataError(f"labels begin at {low} ({where}); labels are numbers from 0 on: subtract {low}")
    top = max((int(each.max(initial=-1)) for each in targets), default=-1) + 1
    if top < 2:
        raise DataError(f"too few classes in the labels ({max(top, 0)}); a classifier needs at least 2")
    if top > 100_000:
        raise DataError(f"{top:,} classes in the labels; labels are numbers from 0 on without large gaps")
    return [f"{number:0{len(str(top - 1))}}" for number in range(top)]


def data_set(pairs: Mapping[str, tuple[Any, Any]], classes: Sequence[str] | None, name: str, val: float, seed: int) -> DataSet:
    """The data set of the pairs of images and labels named ``train``, ``test`` and perhaps ``val``; errors as :func:`coloured`."""
    given = {split: tuple(_array(each, f"{name}, {split}") for each in pair) for split, pair in pairs.items()}
    images = {split: pair[0] for split, pair in given.items()}
    notes, top, parts = checked_ranges(name, images), top_of(images.values()), {}
    for split, (values, numbers) in given.items():
        pixels, grey = coloured(values, f"{name}, {split}", top)
        notes += [GREY_NOTE] if grey and GREY_NOTE not in notes else []
        targets = labels(numbers, len(pixels), f"{name}, {split}")
        parts[split] = as_part(pixels, targets, min(pixels.shape[1:3]), split)
    found = list(classes) if classes is not None else numbered([each.targets for each in parts.values()], name)
    if (top_label := max(int(each.targets.max(initial=0)) for each in parts.values())) >= len(found):
        raise DataError(
            f"labels up to {top_label} for {len(found)} classes ({name}); name every class, in the order of the labels"
        )
    held = parts.get("val", val)
    return assemble(name, found, parts["train"], parts["test"], mean=MEAN, std=STD, val=held, seed=seed, notes=notes)


def untensored(values: Any) -> Any:
    """A tensor as an array, bfloat16 as float32; anything else unchanged."""
    if not hasattr(values, "numpy"):
        return values
    return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy(force=True)


def _array(values: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(untensored(values))
    except ValueError as error:  # NumPy's words for lists of several lengths
        raise DataError(
            f"images or labels are lists of several lengths ({where}); give a pair: all images, all labels"
        ) from error
