"""Caltech-101 (Fei-Fei, Fergus and Perona 2004): ``101_ObjectCategories/`` with the lists train.txt and test.txt next to it.

The lists name 5,784 training images, of which half are the validation set by default, and 2,893 test images; the background
class is excluded. Without lists, the same numbers of images are drawn from the official archive with a fixed seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo import sampling
from zoo.console import print_line
from zoo.data import _cache, _download, _folders, _parts
from zoo.data._image import shown, suffixes
from zoo.errors import DataError
from zoo.spec import DataSet, DataSpec

IMAGES, BACKGROUND = "101_ObjectCategories", "BACKGROUND_Google"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TEST_SHARE = 2_893 / 8_677
URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
SHA256 = "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91"
"""Of the archive, whose MD5 torchvision.datasets.Caltech101 has."""


def build(folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """Read the set, stored an eighth larger than ``size`` for random crops.

    Raises:
        DataError: missing, damaged, or lists with a duplicate or missing image.
    """
    place = _place(folder)
    images = place / IMAGES
    classes = [name for name in _folders.class_names(images) if name != BACKGROUND]
    if len(classes) < 2:
        raise DataError(f"no class folders ({shown(images.absolute())}); unpack the archive again")
    notes: list[str] = []
    if (place / "train.txt").is_file() and (place / "test.txt").is_file():
        listings = _listed(place, classes)
    else:
        listing, notes = _folders.scan(images, classes)
        listings = [listing.take(where) for where in sampling.carve(listing.targets, TEST_SHARE, 0)]
        notes.append(
            f"no train.txt and test.txt: {len(listings[1].targets):,} images, drawn with a fixed seed, are the test set"
        )
    parts = _cache.load(dict(zip(("train", "test"), listings)), _folders.stored_side(size), "caltech101")
    return _parts.assemble("caltech101", classes, *parts.values(), mean=MEAN, std=STD, val=val, seed=seed, notes=notes)


def _place(folder: Path | None) -> Path:
    for place in _folders.places(folder, "caltech101"):
        for inner in (place, place / "caltech101"):  # torchvision unpacks into a child of that name
            if (inner / IMAGES).is_dir():
                return inner
    if folder is not None:
        raise DataError(f"no Caltech-101 found ({shown(folder.absolute())}, {IMAGES}/ is missing); check --data-dir")
    return _downloaded()


def _downloaded() -> Path:
    from torchvision.datasets import Caltech101

    target = _folders.download_folder("caltech101")
    print_line(f"data     downloading caltech101 to {target}")
    _download.fetch(URL, target / Path(URL).name, SHA256)
    try:
        Caltech101(str(target.parent), download=True)  # uses the folder caltech101; finds the archive in it and unpacks it
    except Exception as error:  # archives and disks raise many types
        why = shown(str(error).partition("\n")[0] or type(error).__name__)[:60]
        raise DataError(
            f"cannot unpack caltech101 ({target / Path(URL).name}, {why}); remove the file and try again"
        ) from error
    return target


def _listed(place: Path, classes: list[str]) -> list[_folders.Listing]:
    """The files of train.txt and test.txt, lines such as ``accordion/image_0001.jpg``."""
    listings = []
    seen: dict[str, str] = {}
    for split in ("train", "test"):
        paths: list[Path] = []
        labels: list[int] = []
        for number, line in enumerate((place / f"{split}.txt").read_text(encoding="utf-8").splitlines(), 1):
            at = f"{split}.txt line {number}"
            name, _, file = line.strip().partition("/")
            if name in ("", BACKGROUND):
                continue
            if name not in classes or not file or "/" in file or file.startswith("."):
                raise DataError(f"no image of a class ({shown(place / at)}, {shown(line[:60])}); write class/image_0001.jpg")
            if line.strip() in seen:
                raise DataError(
                    f"image listed twice ({shown(place / at)}, {shown(line[:60])}, also {seen[line.strip()]}); remove one"
                )
            seen[line.strip()] = at
            paths.append(_file(place / IMAGES / name / file))
            labels.append(classes.index(name))
        if not paths:
            raise DataError(f"list is empty ({shown(place / split)}.txt); restore it")
        listings.append(
            _folders.Listing([str(path) for path in paths], np.array(labels), [_folders.state_of(path) for path in paths])
        )
    return listings


def _file(path: Path) -> Path:
    """The file, or the same picture in another format: the lists use .jpg."""
    if not path.is_file():
        return next((other for suffix in suffixes() if (other := path.with_suffix(suffix)).is_file()), path)
    return path


SPECS = {
    "caltech101": DataSpec(
        build=build,
        classes=101,
        shape=(3, 224, 224),
        mean=MEAN,
        std=STD,
        counts=(5_784, 2_893),
        margin=True,
        source="Fei-Fei, Fergus and Perona 2004, data.caltech.edu/records/mzrjq-6wc02",
        recipe={"data.val": 0.5, "data.augment": ["rcrop", "flip"]},
    ),
}
