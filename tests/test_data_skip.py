"""Unreadable images, skipped on request; names that are printed; two sets that look alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from data_cases import check, noise, tree
from PIL import Image

from zoo import recipe, registry, run_folders
from zoo.__main__ import run as zoo
from zoo.data._image import MAX_PIXELS, read_image
from zoo.data._read import read
from zoo.errors import DataError, UsageError
from zoo.recipe_tables import Data


def test_skip_bad_counts_and_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "a")
    (root / "train" / "cat" / "0.png").write_bytes(b"x")
    with pytest.raises(DataError, match="1 of 24 images cannot be read: not an image .*use --skip-bad"):
        read("folder", root, size=28, val=0.0, seed=0)
    data = read("folder", root, size=28, val=0.0, seed=0, skip_bad=True)
    check(data)
    assert len(data.train) == 11
    assert len(data.skipped) == 1
    assert str(root / "train" / "cat" / "0.png") in data.skipped[0]
    assert "warning  1 of 24 images cannot be read" in capsys.readouterr().err


def test_skip_bad_is_a_setting_of_the_recipe() -> None:
    made = recipe.resolve("cnn_small", {"skip_bad": True, "data.layout": "classes"})
    assert (made.data.skip_bad, made.data.layout) == (True, "classes")


@pytest.mark.parametrize(
    ("text", "source", "label"),
    [
        ("cifar10", ("cifar10", ""), "cifar10"),
        ("torchvision:MNIST", ("torchvision:MNIST", ""), "MNIST"),
        ("imgs/pets", ("folder", "imgs/pets"), "pets"),
        ("a/labels.CSV", ("list", "a/labels.CSV"), "labels.CSV"),
        ("b.parquet", ("list", "b.parquet"), "b.parquet"),
        ("pathmnist.npz", ("npz", "pathmnist.npz"), "pathmnist.npz"),
        ("cifra10", ("cifra10", ""), "cifra10"),
    ],
)
def test_what_the_data_option_stands_for(text: str, source: tuple[str, str], label: str) -> None:
    assert registry.data_source(text) == source
    data = Data(name=source[0], dir=source[1])
    assert data.label == label
    assert run_folders.new_name(recipe.Recipe(data=Data(name="folder", dir="データ"))).startswith("cnn_small-")
    if label != "cifra10":
        assert run_folders.new_name(recipe.Recipe(data=data)).startswith(f"{label}-cnn_small-")


def test_a_folder_has_no_second_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pets", "others"):
        (tmp_path / name).mkdir()
    for command in (["train", "cnn_small", "--data", "pets", "--dry-run"], ["data", "verify", "pets"]):
        assert zoo([*command, "--data-dir", "others"]) == 2
        assert "data is the folder or file pets, so data-dir others has no effect" in capsys.readouterr().err
    same = {"data": "pets", "data_dir": str(tmp_path / "pets")}
    assert recipe.resolve("cnn_small", same).data.name == "folder"
    assert recipe.resolve("cnn_small", {"data": "cifar10", "data_dir": "others"}).data.dir == "others"


@pytest.mark.parametrize("name", ["x.npy", "list.txt"])
def test_a_file_of_another_type_is_refused_with_those_that_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    source, place = registry.data_source(name)
    with pytest.raises(DataError, match=r"data folder is a file \(.*; give a folder, or a file that ends in \.csv, \.tsv,"):
        read(source, place, size=28, val=0.0, seed=0)


def test_data_at_a_url_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot fetch data from https://a\.org//b; download it"):
        registry.data_source("https://a.org//b")


def test_a_unicode_class_has_one_name_in_every_locale(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", classes=("käse", "中"), n=5)
    code = (
        "import sys; from zoo.data._read import read; data = read('folder', sys.argv[1], size=28, val=0.0, seed=0)\n"
        "print(ascii(data.classes), data.digest)"
    )
    said = set()
    for more in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}):
        env = {**os.environ, "PYTHONPATH": str(ROOT), **more}
        said.add(subprocess.run([sys.executable, "-c", code, str(root)], env=env, capture_output=True, check=True).stdout)
    assert said == {said.copy().pop()}
    assert b"k\\xe4se" in said.pop()


def test_a_photo_over_the_limit_is_scaled_down_while_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (10_000, 7_000), (200, 100, 50)).save(path, quality=50)
    assert MAX_PIXELS < 10_000 * 7_000
    pixels = read_image(path)
    assert pixels.shape == (3_500, 5_000, 3)
    assert np.abs(pixels[0, 0].astype(int) - (200, 100, 50)).max() < 4
    Image.new("RGB", (10_000, 7_000)).save(path, quality=50, progressive=True)
    with pytest.raises(DataError, match="image too large"):  # its decoder would hold the full picture
        read_image(path)


def test_a_large_picture_is_reduced_to_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(noise(0, 16)).resize((6_000, 3_000), Image.Resampling.NEAREST).save(path)
    assert read_image(path).shape == (3_000, 6_000, 3)
    assert read_image(path, 256).shape == (600, 1_200, 3)


def test_the_same_grey_values_in_any_depth(tmp_path: Path) -> None:
    values = np.arange(256).reshape(16, 16)
    made = {
        "8.tif": values.astype(np.uint8), "16.tif": (values * 257).astype(np.uint16), "i32.tif": values.astype(np.int32),
        "i32wide.tif": (values * 257).astype(np.int32), "f.tif": values.astype(np.float32) / 255, "f255.tif": values.astype(np.float32),
    }  # fmt: skip
    for name, array in made.items():
        Image.fromarray(array).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name)[..., 1], values), name


@pytest.mark.parametrize("skip", [False, True])
def test_a_list_without_any_readable_image(tmp_path: Path, skip: bool) -> None:
    path = tmp_path / "l.csv"
    path.write_text("path,label\n" + "".join(f"gone\\{number}.png,{number % 2}\n" for number in range(12)))
    with pytest.raises(DataError, match=r"none of the 10 images of l\.csv-train can be read: cannot read image .*; correct"):
        read("list", path, size=28, val=0.0, seed=0, skip_bad=skip)
    assert zoo(["data", "verify", str(path)]) == 3


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("image_id,species", r"no columns path and label \(.*l\.csv, image_id, species\); name them so"),
        ("filename,cat,dog,eel", r"no columns path and label \(.*, filename, cat, dog, eel\)"),
        ("path,label", ""),
        ("img/0.png,class", ""),
    ],
)
def test_a_header_of_other_names_is_not_an_image(tmp_path: Path, head: str, says: str) -> None:
    Image.fromarray(noise(0)).save(tree(tmp_path / "img", splits=(".",)) / "0.png")
    lines = [f"img/{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(6)]
    path = tmp_path / "l.csv"
    path.write_text("\n".join([head, *lines]))
    if says:
        with pytest.raises(DataError, match=says):
            read("list", path, size=28, val=0.0, seed=0)
    else:
        assert len(read("list", path, size=28, val=0.0, seed=0).classes) == 2 + head.endswith("class")


def test_a_list_of_a_header_alone_is_empty(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="list is empty"):
        read("list", tmp_path / "l.csv", size=28, val=0.0, seed=0)
