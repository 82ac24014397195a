"""Caltech-101 with and without its lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_cases import build, check, refused, tree


@pytest.fixture
def caltech(tmp_path: Path) -> Path:
    root = tmp_path / "caltech"
    tree(root, splits=("101_ObjectCategories",), classes=("BACKGROUND_Google", "ant", "bass"), n=9)
    for split, numbers in (("train", range(6)), ("test", range(6, 9))):
        lines = [f"{name}/{i}.jpg" for name in ("ant", "bass", "BACKGROUND_Google") for i in numbers]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_caltech_by_its_lists(caltech: Path) -> None:
    data = build("caltech101", caltech)
    check(data)
    assert data.classes == ("ant", "bass")
    assert (len(data.train), len(data.val), len(data.test)) == (6, 6, 6)
    assert [Path(file).name for file in data.test.files[:3]] == ["6.png", "7.png", "8.png"]
    assert data.test.images.shape[1] == 32


def test_caltech_without_lists(caltech: Path) -> None:
    (caltech / "train.txt").unlink()
    data = build("caltech101", caltech)
    check(data)
    assert len(data.test) == 6
    assert "no train.txt and test.txt" in data.notes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ant/77.jpg", "cannot read image"),
        ("emu/1.jpg", "no image of a class .*train.txt line 1,"),
        ("ant/../../x.jpg", "no image of a class"),
        ("ant/6.jpg", "image listed twice .*test.txt line"),
    ],
)
def test_wrong_caltech_lists(caltech: Path, line: str, message: str) -> None:
    (caltech / "train.txt").write_text(line + "\n" + (caltech / "train.txt").read_text())
    refused(message, "caltech101", caltech)
