"""Data sets of PyTorch and Hugging Face in ``zoo.data_set``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import zoo
from zoo import console
from zoo.data import _datasets
from zoo.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 12, 12, 3), np.uint8)
LABELS = np.arange(24) % 3
NAMES = ["cat", "dog", "fox"]


class Photos(Dataset[Any]):
    """Pillow images like those of torchvision's data sets, with an optional transform."""

    def __init__(self, transform: Any = None, sides: tuple[int, ...] = (12,)) -> None:
        self.classes, self.transform, self.sides = NAMES, transform, sides

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, at: int) -> tuple[Any, int]:
        side = self.sides[at % len(self.sides)]
        image = Image.fromarray(PIXELS[at]).resize((side + 4, side)) if self.sides != (12,) else Image.fromarray(PIXELS[at])
        return (self.transform(image) if self.transform else image), int(LABELS[at])


class Rows:
    """Items with columns, and features with class names, like a data set of Hugging Face."""

    def __init__(self, image: str = "image", label: str = "label") -> None:
        self.image, self.label = image, label
        self.features = {label: type("ClassLabel", (), {"names": NAMES})()}

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {self.image: Image.fromarray(PIXELS[at]), self.label: int(LABELS[at])}


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255


FORMS = {
    "Pillow": lambda: Photos(),
    "tensors": lambda: Photos(to_tensor),
    "bytes": lambda: TensorDataset(torch.tensor(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)),
    "subset": lambda: Subset(Photos(), range(24)),
    "columns": lambda: Rows(),
    "img": lambda: Rows("img"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_is_read_as_its_arrays_are(form: str) -> None:
    made = zoo.data_set(FORMS[form](), test=FORMS[form](), val=0)
    plain = zoo.data_set((PIXELS, LABELS), test=(PIXELS, LABELS), val=0, classes=NAMES if form != "bytes" else None)
    assert made.digest == plain.digest and made.classes == plain.classes
    assert np.array_equal(np.asarray(made.train.images), PIXELS) and np.array_equal(made.test.targets, LABELS)


def test_it_trains(tmp_path: Path) -> None:
    made = zoo.data_set(Photos(), test=Subset(Photos(), range(6)), val=(PIXELS, LABELS), name="photos")
    run = zoo.train("cnn_small", data=made, epochs=1, batch_size=8, out=tmp_path / "run", device="cpu")
    assert run.classes == ("cat", "dog", "fox") and len(made.val) == 24
    assert run.predict([Image.fromarray(PIXELS[0])])[0]["top"]


def test_images_of_several_sizes_need_one() -> None:
    mixed = Photos(sides=(12, 20))
    with pytest.raises(DataError, match=r"images of several sizes \(train, 12 x 16 x 3 and 20 x 24 x 3\); give size="):
        zoo.data_set(mixed, test=mixed)
    made = zoo.data_set(mixed, test=(PIXELS, LABELS), size=10)
    assert made.train.images.shape[1:] == (10, 10, 3)


def test_reading_shows_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "SILENT_SECONDS", 0.0)
    zoo.data_set(Photos(), test=(PIXELS, LABELS))
    assert "data     train: read 12 of 24 · left " in capsys.readouterr().err


class Other(Photos):
    """The same labels for other classes."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.classes = names


class Uneven(Photos):
    """Bytes, then floats."""

    def __getitem__(self, at: int) -> tuple[Any, int]:
        return (PIXELS[at] / np.float32(255) if at else PIXELS[at]), int(LABELS[at])


class Boxes(Photos):
    """One class in the first image, two in the others; the third cannot be read."""

    def __init__(self, broken: int = -1) -> None:
        super().__init__()
        self.broken = broken

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        if at == self.broken:
            raise OSError("cannot identify image file 'c.jpg'\nmore")
        return PIXELS[at], [0] * (1 if at == 0 else 2)


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (Boxes(), Photos(), r"labels of several lengths \(train, items 0 and 1\)"),
        (Boxes(0), Photos(), r"cannot read an image \(train\[0\], cannot identify image file 'c.jpg'\); correct"),
        (Photos(), Other(["cat", "cow", "dog"]), r"classes of train and test differ \(cow\)"),
        (Photos(), Other(["dog", "cat", "fox"]), r"differ \(the same names in another order\)"),
        (Photos(lambda image: to_tensor(image) - 0.5), Photos(), r"pixels below 0 \(train\[0\], -0.5\); remove Normalize"),
        (TensorDataset(torch.zeros(3, 3, 8, 8)), Photos(), r"not an image with its label \(train\[0\], 1 values\)"),
        (Rows(label="fine_label"), Photos(), r"no image and label \(train\[0\] has image, fine_label\); rename its columns"),
        (Uneven(), Photos(), r"images of several types \(train, uint8 and float32\)"),
        (Subset(Photos(), []), Photos(), r"no images \(train is empty\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(train: Any, test: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        zoo.data_set(train, test=test)


def test_images_that_exceed_the_memory_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_datasets, "MAX_BYTES", 24 * 12 * 12 * 3 - 1)
    with pytest.raises(DataError, match=r"24 images of 12 x 12 x 3 uint8 do not fit into memory \(train, 0.0 GB"):
        zoo.data_set(Photos(), test=Photos())
