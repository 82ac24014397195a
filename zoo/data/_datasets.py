"""Map-style data sets of PyTorch or Hugging Face, read into arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from zoo.console import counted
from zoo.data._arrays import untensored
from zoo.data._image import read_image, shown
from zoo.data._pixels import square
from zoo.errors import DataError

IMAGE, LABEL = ("image", "img"), "label"
"""Names of the columns in items of Hugging Face."""
MAX_BYTES = 8 << 30
"""Largest size of the images in memory."""


def is_dataset(what: Any) -> bool:
    """Whether this is a map-style data set, and not arrays, a list of them or a loader."""
    return (
        hasattr(what, "__len__")
        and hasattr(what, "__getitem__")
        and not isinstance(what, (tuple, list, str, Mapping, np.ndarray))
    )


def pair(dataset: Any, where: str, size: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a data set whose items are pairs, or have the columns ``image`` (or ``img``) and ``label``.

    Pillow images become (N, H, W, 3) uint8 and, with ``size``, square; arrays and tensors keep their form.

    Raises:
        DataError: items of another form or that cannot be read, images of several sizes, normalised ones, or more than
            :data:`MAX_BYTES` of them.
    """
    if not len(dataset):
        raise DataError(f"no images ({where} is empty); give a data set with at least one image per class")
    first, number = _pair(dataset, 0, where, size)
    if (need := len(dataset) * first.nbytes) > MAX_BYTES:
        form = f"{' x '.join(map(str, first.shape))} {first.dtype}"
        raise DataError(
            f"{len(dataset):,} images of {form} do not fit into memory ({where}, {need / 1e9:.1f} GB, at most "
            f"{MAX_BYTES / 1e9:.1f}); reduce their size, return bytes instead of floats, or write a CSV list of the files"
        )
    images, labels = np.empty((len(dataset), *first.shape), first.dtype), []
    for at in counted(range(len(dataset)), len(dataset), f"data     {where}: read"):
        image, label = _pair(dataset, at, where, size)
        if image.dtype != first.dtype:
            raise DataError(f"images of several types ({where}, {first.dtype} and {image.dtype}); return one type")
        if image.shape != first.shape:
            shapes = " and ".join(" x ".join(map(str, each.shape)) for each in (first, image))
            raise DataError(
                f"images of several sizes ({where}, {shapes}); give size=, such as size=224, for Pillow images, or resize them"
            )
        if label.shape != number.shape:
            raise DataError(f"labels of several lengths ({where}, items 0 and {at}); return one class number per image")
        images[at] = image
        labels.append(label)
    return images, np.stack(labels)


def _pair(dataset: Any, at: int, where: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    where = f"{where}[{at}]"
    try:
        item = dataset[at]
    except Exception as error:  # the data set's own code, which reads files
        why = shown(str(error).partition("\n")[0] or type(error).__name__)[:80]
        raise DataError(f"cannot read an image ({where}, {why}); correct the data set or its files") from error
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE if key in item), None)
        if image is None or LABEL not in item:
            raise DataError(
                f"item has no image and label ({where} has {', '.join(map(str, item))}); rename its columns to image and label"
            )
        label = item[LABEL]
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        image, label = item
    else:
        kind = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
        raise DataError(f"item is not an image with its label ({where}, {kind}); return (image, label)")
    return _image(image, where, size), np.asarray(untensored(label))


def _image(image: Any, where: str, size: int) -> np.ndarray:
    if isinstance(image, Image.Image):
        pixels = read_image(image, size, where)
        return square(pixels, size) if size else pixels
    values = np.asarray(untensored(image))
    if values.dtype.kind == "f" and values.min(initial=0) < 0:
        raise DataError(
            f"pixels below 0 ({where}, {values.min():g}); remove Normalize from the transform: zoo normalises the images"
        )
    return values


def class_names(datasets: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names that the data sets have as ``classes`` (torchvision) or in ``features`` (Hugging Face), if any.

    Raises:
        DataError: they differ, so that equal labels mean other classes.
    """
    found = {split: names for split, dataset in datasets.items() if (names := _names(dataset))}
    first = next(iter(found), "")
    for split, names in found.items():
        if names != found[first]:
            other = min(set(names) ^ set(found[first]), default="the same names in another order")
            raise DataError(f"classes of {first} and {split} differ ({other}); number the labels of both in the same way")
    return found.get(first)


def _names(dataset: Any) -> tuple[str, ...] | None:
    inner = dataset
    while not hasattr(inner, "classes") and hasattr(inner, "dataset"):  # a Subset
        inner = inner.dataset
    names = getattr(inner, "classes", None)
    if names is None and isinstance(features := getattr(inner, "features", None), Mapping):
        names = getattr(features.get(LABEL), "names", None)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else None
