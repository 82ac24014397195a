"""Any folder of class folders: ``FOLDER/{train,test}/<class>/*.png``, or ``FOLDER/<class>/*.png`` with a test set split off."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from zoo.data import _cache, _folders, _parts
from zoo.data._image import shown
from zoo.errors import DataError, UsageError
from zoo.spec import DataSet, DataSpec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Names of the folders of each split, in any case, also with an ending such as ``_set`` or ``_images``."""
ENDINGS = re.compile(r"[ _-]?(set|data|images|imgs|split)$")


def build(folder: Path | None, *, size: int, val: float, seed: int, layout: str = "auto") -> DataSet:
    """Read class folders, stored an eighth larger than ``size`` for random crops.

    Folders named as splits (:data:`SPLITS`) are splits if they hold class folders, and classes if they hold images;
    ``layout`` is "splits" or "classes" if that is ambiguous. A validation folder next to a training and a test folder is the validation set. Without a test folder it is the test set; without both, a fixed fifth of each class is.

    Raises:
        DataError: missing, damaged, ambiguous, or with a class in test that is missing in training.
    """
    listings, classes, notes = listed(folder, layout)
    assert folder is not None
    name = shown(folder.absolute().name)
    parts = _cache.load(listings, _folders.stored_side(size), name)
    held = parts.get("val", val)
    return _parts.assemble(
        name, classes, parts["train"], parts["test"], mean=MEAN, std=STD, val=held, seed=seed, notes=notes
    )  # fmt: skip


def listed(folder: Path | None, layout: str) -> tuple[dict[str, _folders.Listing], list[str], list[str]]:
    """The image files of each split, the classes, and notes; errors as :func:`build`, which reads the images."""
    if folder is None:
        raise UsageError("no folder given; pass the folder of class folders with --data FOLDER")
    _folders.check_folder(folder)
    folder, notes = _inner(folder)
    found = _splits(folder, layout)
    if not found:
        listings, classes, more = _carved(folder)
        return listings, classes, notes + more
    facts = [f"{shown(place.name)}/ is {split}" for split, place in found.items() if place.name != split]
    facts += [f"{shown(name)}/ is ignored" for name in _folders.class_names(folder) if folder / name not in found.values()]
    if facts:
        notes.append(f"folders of {shown(folder)}: {', '.join(facts)}")
    if len(found) == 1:
        listings, classes, more = _carved(found["train"])
        return listings, classes, notes + more
    if "test" not in found:
        notes.append(f"no test folder: {found['val'].name}/ is the test set, and validation is split from train/")
        found["test"] = found.pop("val")
    classes = _classes(found["train"])
    listings = {}
    for split, place in found.items():
        if extra := sorted(set(_folders.class_names(place)) - set(classes)):
            where = shown((place / extra[0]).absolute())
            raise DataError(
                f"class in {place.name} but not in {found['train'].name} ({where}); add training images or remove it"
            )
        listings[split], more = _folders.scan(place, classes)
        notes += more
    return listings, classes, notes


def _inner(folder: Path) -> tuple[Path, list[str]]:
    """The folder, or its only child if that has subfolders, as after unpacking an archive."""
    names = _folders.class_names(folder)
    if len(names) == 1 and len(inside := _folders.class_names(folder / names[0])) > 1 and _split_of(names[0]) is None:
        return folder / names[0], [f"{shown(folder)} has only {shown(names[0])}/: using its {len(inside)} folders"]
    return folder, []


def _splits(folder: Path, layout: str) -> dict[str, Path]:
    """The folder of each split, training first; empty if the folders are classes.

    Raises:
        DataError: two folders of one split, or folders of which some look like splits and some like classes.
    """
    names = _folders.class_names(folder)
    called = {name: split for name in names if (split := _split_of(name))}
    if layout == "classes" or not called:
        if layout == "splits":
            raise DataError(
                f"no folder is named as a split ({shown(folder.absolute())}); name it train, or use data.layout=classes"
            )
        if layout == "auto":
            _check_classes(folder, names)
        return {}
    deep = {name: bool(_folders.class_names(folder / name)) for name in called}
    if layout == "auto":
        if not any(deep.values()) and len(called) < len(names):
            return {}  # a class may be called train
        if not all(deep.values()) or _mixed(folder, names, called):
            raise _ambiguous(folder, called, deep)
    found: dict[str, Path] = {}
    for split in SPLITS:
        places = [name for name, of in called.items() if of == split]
        if len(places) > 1:
            raise DataError(
                f"{len(places)} folders of one split ({shown(folder.absolute())}, {', '.join(map(shown, places))}); remove one"
            )
        if places:
            found[split] = folder / places[0]
    if "train" not in found:
        raise _ambiguous(folder, called, deep)
    return found


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    """DataError if folders of classes have splits in them."""
    for name in names:
        below = _folders.class_names(folder / name)
        if {"train", "test"} <= {_split_of(each) for each in below}:
            raise DataError(
                f"splits inside of a class ({shown((folder / name).absolute())}, {', '.join(map(shown, below))}); "
                f"arrange the folders as {below[0]}/{shown(name)}, or use data.layout=classes to join them"
            )


def _split_of(name: str) -> str | None:
    stem = ENDINGS.sub("", name.casefold())
    return next((split for split, names in SPLITS.items() if stem in names), None)


def _mixed(folder: Path, names: Sequence[str], called: dict[str, str]) -> bool:
    """Whether folders next to the splits have images, as classes do; others, such as ``scripts``, are not evidence."""
    return any(_folders.holds_images(folder / name) for name in names if name not in called)


def _ambiguous(folder: Path, called: dict[str, str], deep: dict[str, bool]) -> DataError:
    facts = ", ".join(f"{shown(name)}/ has {'folders' if deep[name] else 'no folders'}" for name in called)
    return DataError(f"splits or classes? ({shown(folder.absolute())}, {facts}); set data.layout=splits or data.layout=classes")


def _carved(source: Path) -> tuple[dict[str, _folders.Listing], list[str], list[str]]:
    classes = _classes(source)
    listing, notes = _folders.scan(source, classes)
    kept, held, note = _parts.fixed_fifth(listing.targets, shown(source.absolute()), "test folder")
    return {"train": listing.take(kept), "test": listing.take(held)}, classes, [*notes, note]


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
        options=("layout",),
        source="a folder of class folders",
        recipe={"data.augment": ["rcrop", "flip"]},
    ),
}
