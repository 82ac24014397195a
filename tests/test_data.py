"""Checks of every data set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from data_cases import build, check, noise

from zoo import registry
from zoo.data import _image, _parts


def test_the_table_holds_for_every_data_set() -> None:
    entries = registry.table("data")
    assert {"synthetic", "cifar10", "cifar100", "caltech101", "folder", "list", "npz", "torchvision"} <= set(entries)
    for name, entry in entries.items():
        assert {"classes", "shape", "mean", "std", "counts", "source"} <= set(entry), name
        assert callable(registry.find("data", name).build)


@pytest.mark.parametrize("name", ["cifar10", "caltech101"])
def test_real_data(name: str) -> None:
    given = os.environ.get("ZOO_DATA_DIR")
    if not given or not (Path(given) / name).is_dir():
        pytest.skip(f"no real {name} ($ZOO_DATA_DIR/{name} is not there)")
    entry = registry.entry("data", name)
    data = build(name, Path(given), size=entry["shape"][1], val=entry["recipe"].get("data.val", 0.1))
    check(data)
    assert (len(data.train) + len(data.val), len(data.test)) == entry["counts"]
    assert len(data.classes) == entry["classes"]
    if name == "cifar10":
        pixels = np.concatenate([data.train.images, data.val.images]).reshape(-1, 3)
        assert np.allclose(pixels.mean(0) / 255, [0.49140, 0.48216, 0.44653], atol=1e-5)
    else:
        assert len(data.train) == len(data.val) == 2892


def test_fingerprints_see_every_pixel() -> None:
    images = np.stack([noise(0), noise(0)])
    images[1, 31, 31, 2] ^= 1
    prints = _parts.fingerprints(images)
    assert prints.shape == (2, 16)
    assert not np.array_equal(prints[0], prints[1])


def test_shown_escapes_only_what_cannot_be_printed() -> None:
    assert _image.shown("/a b/ü.png") == "/a b/ü.png"
    assert _image.shown("/a\nb") == "/a\\nb"
