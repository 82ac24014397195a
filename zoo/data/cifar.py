"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images").

From the official archive (``cifar-10-batches-py``, checked and if need be downloaded by torchvision) or from class folders
``{train,test}/<class>/*.png``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from zoo.console import say
from zoo.data import _folders
from zoo.spec import DataError, DataSet, DataSpec

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN10, STD10 = (0.4914, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)
MEAN100, STD100 = (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)
STEMS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}

Part = tuple[np.ndarray, np.ndarray, list[str]]


def build(name: str, folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """Read, or download, one of the two sets; images are 32x32 whatever ``size`` unless it is larger."""
    spec = SPECS[name]
    for place in _folders.places(folder, name):
        if (place / "train").is_dir() and (place / "test").is_dir():
            classes, parts = _from_folders(name, place, max(size, 32))
            break
        if (place / STEMS[name]).is_dir():
            classes, parts = _official(name, place, download=False)
            break
    else:
        if folder is not None:
            raise DataError(
                f"no {name} in the folder ({folder.absolute()}); it needs {STEMS[name]}/ or train/ and test/ with class folders"
            )
        classes, parts = _official(name, _folders.cache_folder() / "data" / name, download=True)
    if size > 32 and parts[0][0].shape[1] != size:
        raise DataError(
            f"{name} from its archive is 32x32 and the model wants {size}x{size}; use class folders or another model"
        )
    return _folders.assemble(name, classes, *parts, mean=spec.mean, std=spec.std, val=val, seed=seed)


def _from_folders(name: str, place: Path, size: int) -> tuple[list[str], list[Part]]:
    found = _folders.class_names(place / "train")
    classes = list(CLASSES) if name == "cifar10" and sorted(found) == sorted(CLASSES) else found
    if len(classes) != SPECS[name].classes:
        raise DataError(f"{name} has {SPECS[name].classes} classes, the folder {len(classes)} ({(place / 'train').absolute()})")
    parts = []
    for split in ("train", "test"):
        listing, _ = _folders.scan(place / split, classes)
        images = _folders.load(listing, size, f"{name}-{split}", lambda line: say(f"data     {line}"))
        parts.append((images, np.array([label for _, label in listing], np.int64), [str(path) for path, _ in listing]))
    return classes, parts


def _official(name: str, place: Path, *, download: bool) -> tuple[list[str], list[Part]]:
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    parts = []
    classes: list[str] = []
    for split in ("train", "test"):
        try:
            if download:
                say(f"data     downloading {name} to {place}")
                place.mkdir(parents=True, exist_ok=True)
            read = kind(str(place), train=split == "train", download=download)
        except Exception as error:  # one boundary around the reader: network, archive and pickle faults have many types
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            what = "cannot be downloaded" if download else "is damaged"
            raise DataError(
                f"{name} {what} ({place}, {why[:80]}); put {STEMS[name]} or class folders in a folder and name it with --data-dir"
            ) from error
        classes = list(read.classes)
        parts.append(
            (np.asarray(read.data), np.array(read.targets, np.int64), [f"{split}[{i}]" for i in range(len(read.targets))])
        )
    return classes, parts


RECIPE = {"data.augment": ["crop", "flip"]}

SPECS = {
    "cifar10": DataSpec(
        build=partial(build, "cifar10"), classes=10, shape=(3, 32, 32), mean=MEAN10, std=STD10, counts=(50_000, 10_000),
        source="Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html", recipe=RECIPE,
    ),
    "cifar100": DataSpec(
        build=partial(build, "cifar100"), classes=100, shape=(3, 32, 32), mean=MEAN100, std=STD100, counts=(50_000, 10_000),
        source="Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html", recipe=RECIPE,
    ),
}  # fmt: skip
