"""``--data torchvision:NAME``: any set of torchvision that needs only a folder and a split, tested with small sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import check, noise
from PIL import Image

from zoo.data._read import read
from zoo.errors import DataError, UsageError, ZooError


class Arrays:
    """As MNIST: grey images in ``data``."""

    classes = ("zero", "one")

    def __init__(self, root: str, train: bool = True, transform: Any = None, download: bool = False) -> None:
        if not download:
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        n = 12 if train else 6
        self.data = torch.from_numpy(np.stack([noise(seed + 50 * train, 9)[..., 0] for seed in range(n)]))
        self.targets = torch.arange(n) % 2


class Pictures:
    """As Flowers102: Pillow images one by one, several splits."""

    def __init__(self, root: str, split: str = "train", transform: Any = None) -> None:
        if split not in ("train", "val", "test"):
            raise ValueError("no such split")
        self.split = split

    def __len__(self) -> int:
        return 12

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        return Image.fromarray(noise(at + 20 * len(self.split), 12)), at % 3


class Boxes(Pictures):
    """As VOCDetection: the label of an image is a description."""

    def __getitem__(self, at: int) -> tuple[Image.Image, Any]:
        return super().__getitem__(at)[0], {"boxes": [at]}


class Whole:
    """As Caltech256: no splits."""

    def __init__(self, root: str, transform: Any = None) -> None:
        self.data = np.stack([noise(seed, 9) for seed in range(20)])
        self.targets = [seed % 2 for seed in range(20)]


class Demanding:
    def __init__(self, root: str, ann_file: str) -> None: ...


class Broken:
    def __init__(self, root: str) -> None:
        raise OSError("Network is unreachable\nmore")


@pytest.fixture(autouse=True)
def sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision import datasets

    known = {each.__name__: each for each in (Arrays, Pictures, Boxes, Whole, Demanding, Broken)}
    for name, kind in known.items():
        monkeypatch.setattr(datasets, name, kind, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, *known))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def test_grey_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    data = read("torchvision:Arrays", size=14, val=0.25, seed=0)
    check(data)
    assert (data.name, data.classes) == ("Arrays", ("zero", "one"))
    assert data.test.images.shape == (6, 16, 16, 3)
    assert data.notes == ("grey images: repeated to 3 channels",)
    assert "downloading Arrays" in capsys.readouterr().err
    image = data.test.images[0]
    assert (image[..., 0] == image[..., 1]).all()


def test_pictures_and_splits(tmp_path: Path) -> None:
    data = read("torchvision:Pictures", tmp_path, size=7, val=0.25, seed=0)
    check(data)
    assert data.classes == ("0", "1", "2")
    assert len(data.test) == 12
    assert data.notes == ()


def test_a_set_without_class_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not labels \(Boxes-train, shape \(12,\), object\); give 12 class numbers"):
        read("torchvision:Boxes", tmp_path, size=7, val=0.25, seed=0)


def test_a_set_without_splits_has_a_fifth_carved(tmp_path: Path) -> None:
    data = read("torchvision:Whole", tmp_path, size=7, val=0.0, seed=0)
    check(data)
    assert (len(data.train), len(data.test)) == (16, 4)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("MNISTT", UsageError, "no torchvision data set 'MNISTT' .did you mean MNIST"),
        ("", UsageError, "no torchvision data set ''"),
        ("Demanding", UsageError, "needs more than a folder .ann_file"),
        ("Broken", DataError, r"cannot read torchvision:Broken \(.*, Network is unreachable\)"),
    ],
)
def test_what_cannot_be_read(name: str, error: type[ZooError], message: str) -> None:
    with pytest.raises(error, match=message):
        read(f"torchvision:{name}", size=7, val=0.0, seed=0)


def test_the_names_that_people_use_need_no_code() -> None:
    from zoo.data.torchvision_sets import _kind

    for name in ("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "SVHN", "STL10", "Flowers102", "OxfordIIITPet", "Food101", "DTD",
                 "GTSRB", "EuroSAT", "USPS", "FGVCAircraft", "PCAM"):  # fmt: skip
        assert _kind(name)
