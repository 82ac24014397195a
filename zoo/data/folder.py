"""Any folder of class folders: ``FOLDER/{train,test}/<class>/*.png``, or ``FOLDER/<class>/*.png`` with a test set carved off."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo import sampling
from zoo.console import say
from zoo.data import _folders
from zoo.spec import DataError, DataSet, DataSpec, UsageError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TEST_SHARE = 0.2


def stored_side(size: int) -> int:
    """Images for large inputs are kept an eighth larger, to be cropped in training: 256 for 224; small ones as they are."""
    return size if size < 64 else round(size * 8 / 7)


def build(folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """Read class folders; without a ``test`` folder a fifth of each class, chosen by the seed 0, is the test set."""
    if folder is None:
        raise UsageError("data folder needs a place; say where with --data-dir FOLDER, or --data FOLDER")
    _folders.check_folder(folder)
    split = (folder / "train").is_dir() and (folder / "test").is_dir()
    source = folder / "train" if split else folder
    classes = _folders.class_names(source)
    if len(classes) < 2:
        raise DataError(
            f"not a folder of class folders ({source.absolute()}, {len(classes)} class folders); see the README, Data"
        )
    listing, notes = _folders.scan(source, classes)
    if split:
        if extra := sorted(set(_folders.class_names(folder / "test")) - set(classes)):
            raise DataError(
                f"class in test but not in train ({(folder / 'test' / extra[0]).absolute()}); add training images or remove it"
            )
        test, more = _folders.scan(folder / "test", classes)
        notes += more
    else:
        labels = np.array([label for _, label in listing])
        kept, held = sampling.carve(labels, TEST_SHARE, 0)
        listing, test = [listing[i] for i in kept], [listing[i] for i in held]
        notes.append(f"no test folder: {len(test):,} images ({TEST_SHARE:.0%} of each class, seed 0) are the test set")
    name = folder.absolute().name
    parts = []
    for each in (listing, test):
        images = _folders.load(each, stored_side(size), name, lambda line: say(f"data     {line}"))
        parts.append((images, np.array([label for _, label in each], np.int64), [str(path) for path, _ in each]))
    return _folders.assemble(name, classes, *parts, mean=MEAN, std=STD, val=val, seed=seed, notes=notes)


SPECS = {
    "folder": DataSpec(
        build=build, classes=0, shape=(3, 0, 0), mean=MEAN, std=STD, counts=(0, 0), source="your folder of class folders",
        recipe={"data.augment": ["rcrop:224", "flip"]},
    ),
}  # fmt: skip
