"""Any folder of class folders: ``FOLDER/{train,test}/<class>/*.png``, or ``FOLDER/<class>/*.png`` with a test set carved off."""

from __future__ import annotations

from pathlib import Path

from zoo import sampling
from zoo.data import _folders, _parts
from zoo.data._image import shown
from zoo.errors import DataError, UsageError
from zoo.spec import DataSet, DataSpec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TEST_SHARE = 0.2


def build(folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """Read class folders, kept an eighth larger than ``size`` for random crops.

    A folder ``val`` beside ``train`` and ``test`` is the validation set. Without ``test``, ``val`` is the test set; without
    both, a fifth of each class, always the same.

    Raises:
        DataError: missing, damaged, or with a class in test that training lacks.
    """
    if folder is None:
        raise UsageError("which folder? name the folder of class folders with --data FOLDER")
    _folders.check_folder(folder)
    name = shown(folder.absolute().name)
    side = _folders.stored_side(size)
    listings, classes, notes = _listings(folder)
    parts = {split: _folders.load(listing, side, f"{_plain(name)}-{split}") for split, listing in listings.items()}
    held = parts.get("val", val)
    return _parts.assemble(
        name, classes, parts["train"], parts["test"], mean=MEAN, std=STD, val=held, seed=seed, notes=notes
    )  # fmt: skip


def _plain(name: str) -> str:
    """A folder's name for use in a file name."""
    return "".join(c if c.isalnum() else "_" for c in name)[:40]


def _listings(folder: Path) -> tuple[dict[str, _folders.Listing], list[str], list[str]]:
    has = {split: folder / split for split in ("train", "val", "test") if (folder / split).is_dir()}
    if "train" not in has or len(has) == 1:
        return _carved(has.get("train", folder))
    notes = []
    if "test" not in has:
        has["test"] = has.pop("val")
        notes.append("no test folder: val/ is the test set, and validation is carved from train/")
    classes = _classes(has["train"])
    listings = {}
    for split, place in has.items():
        if extra := sorted(set(_folders.class_names(place)) - set(classes)):
            where = shown((place / extra[0]).absolute())
            raise DataError(f"class in {place.name} but not in train ({where}); add training images or remove it")
        listings[split], more = _folders.scan(place, classes)
        notes += more
    return listings, classes, notes


def _carved(source: Path) -> tuple[dict[str, _folders.Listing], list[str], list[str]]:
    classes = _classes(source)
    listing, notes = _folders.scan(source, classes)
    kept, held = sampling.carve(listing.targets, TEST_SHARE, 0)
    if not len(held):
        raise DataError(f"too few images for a test set ({shown(source.absolute())}, {len(kept)}); add some")
    notes.append(f"no test folder: {len(held):,} images, a fifth of each class and always the same, are the test set")
    return {"train": listing.take(kept), "test": listing.take(held)}, classes, notes


def _classes(source: Path) -> list[str]:
    classes = _folders.class_names(source)
    if len(classes) < 2:
        raise DataError(
            f"not a folder of class folders ({shown(source.absolute())}, {len(classes)} class folders); see README, Data"
        )
    return classes


SPECS = {
    "folder": DataSpec(
        build=build,
        classes=0,
        shape=(3, 224, 224),
        mean=MEAN,
        std=STD,
        counts=(0, 0),
        margin=True,
        source="your folder of class folders",
        recipe={"data.augment": ["rcrop", "flip"]},
    ),
}
