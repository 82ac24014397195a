"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images").

From the official archive (``cifar-10-batches-py``, verified, and downloaded by torchvision if missing) or from class folders
``{train,test}/<class>/*.png``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.console import print_line
from zoo.data import _cache, _download, _folders, _parts, _pixels
from zoo.data._image import shown
from zoo.errors import DataError, UsageError
from zoo.files import digest
from zoo.spec import DataSet, DataSpec

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STEMS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = {
    "cifar10": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar100": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
}
"""sha256 of the archives ``cifar-10-python.tar.gz`` and ``cifar-100-python.tar.gz``."""
SHA256 = {
    "cifar10": {
        "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    },
    "cifar100": {
        "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
        "test": "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864",
        "meta": "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
    },
}
"""sha256 of the files in them, which are pickles; torchvision has only their MD5 digests, which can be forged."""
SIDE = 32
MAX_BYTES = 4 << 30
"""Largest size in memory of resized images of an archive."""


def build(name: str, folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """Read, or download, one of the two sets; for a ``size`` other than 32 the images are resized.

    Raises:
        DataError: missing, damaged, or a different set.
    """
    spec = SPECS[name]
    for place in _folders.places(folder, name):
        if (place / "train").is_dir() and (place / "test").is_dir():
            classes, parts, notes = _from_folders(name, place, size)
            break
        if (place / STEMS[name]).is_dir() or (place.name == STEMS[name] and place.is_dir()):
            root = place if (place / STEMS[name]).is_dir() else place.parent
            classes, parts, notes = _official(name, root, size)
            break
    else:
        if folder is not None:
            where = shown(folder.absolute())
            raise DataError(f"no {name} found ({where}); expected {STEMS[name]}/, or train/ and test/ with class folders")
        classes, parts, notes = _official(name, _downloaded(name), size)
    return _parts.assemble(name, classes, *parts, mean=spec.mean, std=spec.std, val=val, seed=seed, notes=notes)


def _from_folders(name: str, place: Path, size: int) -> tuple[list[str], list[_parts.Part], list[str]]:
    classes = _checked_classes(name, place)
    listings, notes = {}, []
    for split in ("train", "test"):
        listings[split], more = _folders.scan(place / split, classes)
        notes += more
    parts = list(_cache.load(listings, size, name).values())
    for split, loaded, expected in zip(("training", "test"), parts, SPECS[name].counts):
        if len(loaded.targets) != expected:
            notes.append(f"{len(loaded.targets):,} {split} images, where {name} has {expected:,}")
    return classes, parts, notes


def _checked_classes(name: str, place: Path) -> list[str]:
    """Classes in the official order, which for CIFAR-100 is alphabetical."""
    found = {split: _folders.class_names(place / split) for split in ("train", "test")}
    if extra := sorted(set(found["test"]) - set(found["train"])):
        raise DataError(
            f"class in test but not in train ({shown((place / 'test' / extra[0]).absolute())}); add training images"
        )
    if len(found["train"]) != SPECS[name].classes or (name == "cifar10" and set(found["train"]) != set(CLASSES)):
        where = shown((place / "train").absolute())
        raise DataError(f"classes are not those of {name} ({where}, {len(found['train'])} folders); other sets: --data FOLDER")
    return list(CLASSES) if name == "cifar10" else found["train"]


def _reader(name: str) -> Any:
    from torchvision import datasets

    return datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100


def _official(name: str, root: Path, size: int) -> tuple[list[str], list[_parts.Part], list[str]]:
    kind, stem = _reader(name), STEMS[name]
    # The files are pickles: none is opened before the digests of all are verified.
    for file, expected in SHA256[name].items():
        path = root / stem / file
        if not path.is_file() or digest(path) != expected:
            what = "differs from its published checksum" if path.is_file() else "is missing"
            raise DataError(f"{name} is damaged: {file} {what} ({shown(path.absolute())}); remove {stem} and download it again")
    classes: list[str] = []
    parts, notes = [], []
    for split in ("train", "test"):
        read = kind(str(root), train=split == "train", download=False)
        classes = list(read.classes)
        files = [f"{split}[{i}]" for i in range(len(read.targets))]
        parts.append(_parts.part(_resized(np.ascontiguousarray(read.data), size), np.array(read.targets, np.int64), files))
    if size != SIDE:
        notes.append(f"images resized from {SIDE} to {size} pixels")
    return classes, parts, notes


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1] == size:
        return images
    if len(images) * size * size * 3 > MAX_BYTES:
        raise UsageError(
            f"{len(images):,} images at {size} pixels do not fit into memory; use class folders, which are cached on disk"
        )
    larger = np.empty((len(images), size, size, 3), np.uint8)
    for number, image in enumerate(images):
        larger[number] = _pixels.square(image, size)
    return larger


def _downloaded(name: str) -> Path:
    target = _folders.download_folder(name)
    print_line(f"data     downloading {name} to {target}")
    kind = _reader(name)
    _download.fetch(kind.url, target / kind.filename, ARCHIVES[name])
    try:
        kind(str(target), train=True, download=True)  # finds the archive and unpacks it
    except Exception as error:  # archives and disks raise many types
        why = shown(str(error).partition("\n")[0] or type(error).__name__)[:60]
        raise DataError(f"cannot unpack {name} ({target / kind.filename}, {why}); remove the file and try again") from error
    return target


RECIPE = {"data.augment": ["crop", "flip"]}
SOURCE = "Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html"

SPECS = {
    "cifar10": DataSpec(
        build=partial(build, "cifar10"),
        classes=10,
        shape=(3, 32, 32),
        mean=(0.4914, 0.48216, 0.44653),
        std=(0.24703, 0.24349, 0.26159),
        counts=(50_000, 10_000),
        balanced=True,
        source=SOURCE,
        recipe=RECIPE,
    ),
    "cifar100": DataSpec(
        build=partial(build, "cifar100"),
        classes=100,
        shape=(3, 32, 32),
        mean=(0.50708, 0.48655, 0.44092),
        std=(0.26733, 0.25644, 0.27615),
        counts=(50_000, 10_000),
        balanced=True,
        source=SOURCE,
        recipe=RECIPE,
    ),
}
