"""Caltech-101 (Fei-Fei, Fergus and Perona 2004): a folder with ``101_ObjectCategories/`` and the lists train.txt and test.txt.

The lists name 5,784 training images, of which half are the validation set by default, and 2,893 test images; the background
class is left out. Without lists the same numbers are drawn from the official archive by a fixed seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo import sampling
from zoo.console import say
from zoo.data import _folders
from zoo.data.folder import MEAN, STD, stored_side
from zoo.spec import DataError, DataSet, DataSpec

BACKGROUND = "BACKGROUND_Google"
TEST_SHARE = 1 / 3


def build(folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """Read the set at ``size`` pixels (kept an eighth larger for cropping)."""
    for place in _folders.places(folder, "caltech101"):
        images = place / "101_ObjectCategories"
        if images.is_dir():
            break
    else:
        where = folder.absolute() if folder else _folders.cache_folder() / "data" / "caltech101"
        raise DataError(
            f"no Caltech-101 ({where}, 101_ObjectCategories/ is missing); get it from data.caltech.edu and name the folder with --data-dir"
        )
    classes = [name for name in _folders.class_names(images) if name != BACKGROUND]
    listed = (place / "train.txt").is_file() and (place / "test.txt").is_file()
    listings = (
        [_listed(place / f"{split}.txt", images, classes) for split in ("train", "test")] if listed else _drawn(images, classes)
    )
    parts = []
    for split, listing in zip(("train", "test"), listings):
        stored = _folders.load(listing, stored_side(size), f"caltech101-{split}", lambda line: say(f"data     {line}"))
        parts.append((stored, np.array([label for _, label in listing], np.int64), [str(path) for path, _ in listing]))
    notes = [] if listed else ["no train.txt and test.txt: a third of each class, seed 0, is the test set"]
    return _folders.assemble("caltech101", classes, *parts, mean=MEAN, std=STD, val=val, seed=seed, notes=notes)


def _listed(path: Path, images: Path, classes: list[str]) -> _folders.Listing:
    number = {name: i for i, name in enumerate(classes)}
    found: _folders.Listing = []
    for line in path.read_text(encoding="utf-8").split():
        name, _, file = line.partition("/")
        if name == BACKGROUND:
            continue
        if name not in number:
            raise DataError(f"class of the list has no folder ({path}, {line!r}); restore {images / name}")
        chosen = images / name / file
        if not chosen.is_file():  # the lists say .jpg; other formats of the same picture will do
            chosen = next((other for other in chosen.parent.glob(f"{chosen.stem}.*")), chosen)
        if not chosen.is_file():
            raise DataError(f"image of the list is missing ({chosen.absolute()}); restore it")
        found.append((chosen, number[name]))
    return found


def _drawn(images: Path, classes: list[str]) -> list[_folders.Listing]:
    listing, _ = _folders.scan(images, classes)
    kept, held = sampling.carve(np.array([label for _, label in listing]), TEST_SHARE, 0)
    return [[listing[i] for i in where] for where in (kept, held)]


SPECS = {
    "caltech101": DataSpec(
        build=build, classes=101, shape=(3, 224, 224), mean=MEAN, std=STD, counts=(5_784, 2_893),
        source="Fei-Fei, Fergus and Perona 2004, data.caltech.edu/records/mzrjq-6wc02",
        recipe={"data.val": 0.5, "data.augment": ["rcrop:224", "flip"]},
    ),
}  # fmt: skip
