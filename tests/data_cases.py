"""Folders of images, and checks that every data set must pass."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo import registry
from zoo.data._folders import stored_side
from zoo.errors import DataError
from zoo.spec import DataSet


def noise(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def tree(
    root: Path,
    *,
    splits: tuple[str, ...] = ("train", "test"),
    classes: tuple[str, ...] = ("cat", "dog"),
    n: int = 6,
    side: int = 32,
) -> Path:
    """A folder with class folders of small PNGs, all different."""
    number = sum(map(ord, str(root)))
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                number += 1
                Image.fromarray(noise(number, side)).save(root / split / name / f"{i}.png")
    return root


def build(name: str, folder: Path | None, *, size: int = 28, val: float = 0.5, seed: int = 0) -> DataSet:
    """The data set at the image size of its spec."""
    spec = registry.find("data", name)
    data: DataSet = spec.build(folder, size=size, val=val, seed=seed)
    assert data.test.images.shape[1] == (stored_side(size) if spec.margin else size)
    return data


def check(data: DataSet) -> None:
    """Check what holds for every data set."""
    files: list[str] = []
    for split in (data.train, data.val, data.test):
        assert split.images.dtype == np.uint8
        assert split.targets.dtype == np.int64
        assert len(split.images) == len(split.targets) == len(split.files) == len(split)
        assert split.images.shape[1] == split.images.shape[2]
        if len(split):
            assert split.targets.min() >= 0
            assert split.targets.max() < len(data.classes)
        files += split.files
    assert len(set(files)) == len(files)
    assert set(data.train.targets) == set(range(len(data.classes)))
    assert len(data.digest) == 64


def refused(message: str, name: str, folder: Path | None, error: type[Exception] = DataError) -> str:
    with pytest.raises(error, match=message) as caught:
        build(name, folder)
    text = str(caught.value)
    assert "\n" not in text
    assert len(re.sub(r"/\S+", "", text)) <= 200
    return text
