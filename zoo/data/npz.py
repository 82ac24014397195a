"""Arrays in one ``.npz`` file: ``train_images``, ``train_labels``, ``val_...``, ``test_...`` as in MedMNIST, or ``x`` and ``y``.

Also ``x_train``, ``y_train``, ``x_test``, ``y_test`` as in Keras. Without test arrays, a fifth is split off as the test set.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from zoo.data import _arrays, _parts
from zoo.data._folders import stored_side
from zoo.data._image import shown
from zoo.errors import DataError, UsageError
from zoo.spec import DataSet, DataSpec

MAX_BYTES = 64 << 30
"""Largest size of all arrays after unpacking."""
KEYS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "Y_{}"), ("X_{}", "y_{}"), ("{}_x", "{}_y"))
"""Names of the images and labels of a split."""
WHOLE = (
    ("x", "y"),
    ("X", "Y"),
    ("X", "y"),
    ("images", "labels"),
    ("images", "targets"),
    ("data", "labels"),
    ("data", "target"),
)
"""Their names in a file without splits."""
NAMES = ("class_names", "classes", "label_names")
"""Names of an array with the name of each class."""


def build(folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """Read the file at ``folder``.

    Raises:
        DataError: missing, damaged, or without arrays of such names, shapes and ranges.
    """
    if folder is None:
        raise UsageError("no file given; pass it with --data FILE.npz")
    arrays = _arrays_of(folder)
    pairs = {split: pair for split in ("train", "val", "test") if (pair := _pair(arrays, KEYS, split))}
    notes = []
    if not pairs and (pair := _pair(arrays, WHOLE, "")):
        pairs = {"train": pair}
    if "train" not in pairs:
        raise DataError(
            f"no images and labels ({shown(folder)}, {', '.join(arrays)[:60]}); name the arrays x and y, or train_images ..."
        )
    notes += _arrays.checked_ranges(shown(folder), {images: arrays[images] for images, _ in pairs.values()})
    top = _arrays.top_of(arrays[images] for images, _ in pairs.values())
    if 1 < top <= 2:
        notes.append(f"floats of 0 to {top:g}: 1 is white, values above it are cut off")
    read = {split: _read(arrays, pair, folder, top) for split, pair in pairs.items()}
    if any(grey for *_, grey in read.values()):
        notes.append(_arrays.GREY_NOTE)
    classes = _named(arrays, _arrays.numbered([targets for _, targets, _ in read.values()], shown(folder)), folder)
    if "test" not in read and "val" in read:
        read["test"] = read.pop("val")
        notes.append("no test arrays: the val arrays are the test set, and validation is split from training")
    if "test" not in read:
        images, targets, grey = read["train"]
        kept, held, note = _parts.fixed_fifth(targets, shown(folder), "test arrays")
        read = {"train": (images[kept], targets[kept], grey), "test": (images[held], targets[held], grey)}
        notes.append(note)
    parts = {split: _arrays.as_part(images, targets, stored_side(size), split) for split, (images, targets, _) in read.items()}
    return _parts.assemble(
        shown(folder.name), classes, parts["train"], parts["test"], mean=_arrays.MEAN, std=_arrays.STD, val=parts.get("val", val), seed=seed,
        notes=notes,
    )  # fmt: skip


def _named(arrays: dict[str, np.ndarray], numbers: list[str], path: Path) -> list[str]:
    """The names that the file gives the classes, else their numbers; DataError if it gives another number of names."""
    found = next((arrays[key] for key in NAMES if key in arrays and arrays[key].dtype.kind == "U"), None)
    if found is None:
        return numbers
    if found.ndim != 1 or len(found) < len(numbers):
        raise DataError(
            f"class names do not fit ({shown(path)}, {found.shape} names, {len(numbers)} classes); give one per class"
        )
    return [str(name) for name in found]


def _arrays_of(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file; nothing is unpickled, and the declared size is checked before unpacking."""
    where = shown(path.absolute())
    if not path.is_file():
        raise DataError(f"no data file ({where}); check --data")
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total > MAX_BYTES:
            raise DataError(f"arrays are too large ({where}, {total / 1e9:.0f} GB unpacked); use class folders")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except DataError:
        raise
    except Exception as error:  # the parser raises many types
        why = shown(str(error).partition("\n")[0] or type(error).__name__)[:80]
        raise DataError(f"cannot read the arrays ({where}, {why}); it must be an .npz file without objects") from error


def _pair(arrays: dict[str, np.ndarray], names: tuple[tuple[str, str], ...], split: str) -> tuple[str, str] | None:
    for image, label in names:
        pair = image.format(split), label.format(split)
        if pair[0] in arrays and pair[1] in arrays:
            return pair
    return None


def _read(arrays: dict[str, np.ndarray], pair: tuple[str, str], path: Path, top: float) -> tuple[np.ndarray, np.ndarray, bool]:
    images, grey = _arrays.coloured(arrays[pair[0]], f"{shown(path)}, {pair[0]}", top)
    targets = _arrays.labels(arrays[pair[1]], len(images), f"{shown(path)}, {pair[1]}")
    if not len(images):
        raise DataError(f"no images ({shown(path)}, {pair[0]}); fill the array or remove it")
    return images, targets, grey


SPECS = {
    "npz": DataSpec(
        build=build,
        classes=0,
        shape=(3, 224, 224),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        counts=(0, 0),
        margin=True,
        source="an .npz file of arrays",
        recipe={"data.augment": ["rcrop", "flip"]},
    ),
}
