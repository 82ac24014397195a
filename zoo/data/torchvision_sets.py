"""Any data set of torchvision as ``torchvision:MNIST``, downloaded and read by torchvision."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from zoo.console import print_line
from zoo.data import _arrays, _datasets, _folders, _parts
from zoo.data._image import shown
from zoo.errors import DataError, UsageError, did_you_mean
from zoo.spec import DataSet, DataSpec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MORE = {"EMNIST": {"split": "balanced"}}
"""Required arguments of a set."""


def build(folder: Path | None, *, size: int, val: float, seed: int, variant: str) -> DataSet:
    """Read the class ``variant`` of torchvision.datasets from ``folder``, or download it to the cache.

    Raises:
        UsageError: no such class, or one that needs more than a folder and a split. DataError: it cannot be downloaded or read.
    """
    kind = _kind(variant)
    root = folder or _folders.download_folder(f"torchvision-{variant}")
    sets = {split: opened for split in ("train", "test") if (opened := _opened(kind, variant, root, split)) is not None}
    side, notes, parts = _folders.stored_side(size), [], {}
    for split, opened in sets.items():
        images, targets, grey = _read(opened, side, f"{variant}-{split}")
        if grey and _arrays.GREY_NOTE not in notes:
            notes.append(_arrays.GREY_NOTE)
        parts[split] = images, targets
    if "test" not in parts:
        images, targets = parts["train"]
        kept, held, note = _parts.fixed_fifth(targets, variant, "test split")
        parts = {"train": (images[kept], targets[kept]), "test": (images[held], targets[held])}
        notes.append(note)
    classes = _classes(sets["train"], [targets for _, targets in parts.values()])
    made = [_arrays.as_part(*parts[split], side, split) for split in ("train", "test")]
    return _parts.assemble(variant, classes, *made, mean=MEAN, std=STD, val=val, seed=seed, notes=notes)


def _kind(variant: str) -> Any:
    from torchvision import datasets

    known = [
        name
        for name in datasets.__all__
        if inspect.isclass(getattr(datasets, name)) and name not in ("FakeData", "VisionDataset")
    ]
    if variant not in known:
        raise UsageError(f"no torchvision data set {variant!r}{did_you_mean(variant, known)}; write it as torchvision:MNIST")
    kind = getattr(datasets, variant)
    accepted = inspect.signature(kind.__init__).parameters
    needed = [name for name, p in accepted.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in needed if name not in ("self", "root", *MORE.get(variant, {}))]:
        raise UsageError(
            f"torchvision:{variant} needs more than a folder ({', '.join(missing)}); write a CSV list of its images"
        )
    return kind


def _opened(kind: Any, variant: str, root: Path, split: str) -> Any:
    """The split as opened by torchvision; None if the set has only one."""
    accepted = inspect.signature(kind.__init__).parameters
    chosen: dict[str, Any] = dict(MORE.get(variant, {}))
    if "train" in accepted:
        chosen["train"] = split == "train"
    elif "split" in accepted and "split" not in chosen:
        default = accepted["split"].default
        chosen["split"] = (
            split if default in ("train", "test") else "trainval" if split == "train" and default == "trainval" else split
        )
    elif split == "test":
        return None
    downloads = {"download": True} if "download" in accepted else {}
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            return kind(str(root), **chosen)  # already extracted
        except RuntimeError:
            if not downloads:
                raise
            print_line(f"data     downloading {variant} to {shown(root)}")
            return kind(str(root), **chosen, **downloads)
    except Exception as error:  # torchvision, archives and the network raise many types
        why = shown(str(error).partition("\n")[0] or type(error).__name__)[:80]
        raise DataError(
            f"cannot read torchvision:{variant} ({shown(root)}, {why}); download it there manually, or try again"
        ) from error


def _read(opened: Any, side: int, name: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images (n, s, s, 3) uint8, targets (n,) and whether all are grey."""
    data, targets = getattr(opened, "data", None), getattr(opened, "targets", getattr(opened, "labels", None))
    if data is not None and targets is not None and len(data) == len(targets) and np.ndim(data) >= 3:
        found, numbers = np.asarray(data), np.asarray(targets)
    else:
        found, numbers = _datasets.pair(opened, name, side)
    images, grey = _arrays.coloured(found, name, _arrays.top_of([found]))
    return images, _arrays.labels(numbers, len(images), name), grey


def _classes(opened: Any, targets: list[np.ndarray]) -> list[str]:
    numbers = _arrays.numbered(targets)
    names = [str(name) for name in getattr(opened, "classes", None) or ()]
    return names if len(names) >= len(numbers) and len(set(names)) == len(names) else numbers


SPECS = {
    "torchvision": DataSpec(
        build=build,
        classes=0,
        shape=(3, 224, 224),
        mean=MEAN,
        std=STD,
        counts=(0, 0),
        margin=True,
        options=("variant",),
        source="torchvision.datasets, as torchvision:MNIST",
        recipe={"data.augment": ["rcrop", "flip"]},
    ),
}
