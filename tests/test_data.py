"""Data sets: what is read, how it is split, and what is said of folders and images that are wrong."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo import registry
from zoo.data import _folders, _image, _parts, synthetic
from zoo.data._image import read_image
from zoo.spec import DataError, DataSet, UsageError

SYNTHETIC = "80c8f9938f8efa22d27c66737eb0ff98b1da37202a45a282b2d5b32762e8b5bc"


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
    """A folder of class folders of small PNGs, each different."""
    number = sum(map(ord, str(root)))
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                number += 1
                Image.fromarray(noise(number, side)).save(root / split / name / f"{i}.png")
    return root


def build(name: str, folder: Path | None, *, size: int = 28, val: float = 0.5, seed: int = 0) -> DataSet:
    return registry.find("data", name).build(folder, size=size, val=val, seed=seed)


def check(data: DataSet) -> None:
    """What holds of every data set."""
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
    with pytest.raises(error, match=message) as told:
        build(name, folder)
    text = str(told.value)
    assert "\n" not in text
    assert len(re.sub(r"/\S+", "", text)) <= 200
    return text


# --- synthetic ---


@pytest.fixture(scope="module")
def made() -> DataSet:
    return build("synthetic", None, size=32, val=1 / 7)


def test_synthetic_is_the_same_everywhere(made: DataSet) -> None:
    check(made)
    assert made.digest == SYNTHETIC
    assert (len(made.train), len(made.val), len(made.test)) == (6000, 1000, 1000)
    for split, count in ((made.train, 600), (made.val, 100), (made.test, 100)):
        assert np.bincount(split.targets).tolist() == [count] * 10
    assert made.notes == ()


def test_the_validation_split_follows_the_seed_and_the_pixels_do_not(made: DataSet) -> None:
    other = build("synthetic", None, size=32, val=1 / 7, seed=1)
    assert other.digest == made.digest
    assert other.val.files != made.val.files
    assert np.array_equal(other.test.images, made.test.images)


def test_synthetic_statistics(made: DataSet) -> None:
    values = made.train.images / 255
    assert np.allclose(values.mean((0, 1, 2)), made.mean, atol=0.02)
    assert np.allclose(values.std((0, 1, 2)), made.std, atol=0.06)


def test_shape_and_texture_change_only_the_figure() -> None:
    zeros = np.zeros(20, np.int64)
    disc, ring, dots = (synthetic.paint(zeros + s, zeros + t, 9) for s, t in ((0, 0), (4, 0), (0, 1)))
    for other in (ring, dots):
        changed = (disc != other).any(-1).mean((1, 2))
        assert (changed > 0).all()
        assert changed.max() < 0.5
    assert synthetic.CLASSES[2 * synthetic.SHAPES.index("ring") + synthetic.TEXTURES.index("dotted")] == "dotted ring"


def test_synthetic_is_beyond_a_linear_model(made: DataSet) -> None:
    """Ridge regression on the pixels: far below the 45 % that would make the set too easy."""
    flat = made.train.images[:, ::2, ::2].reshape(6000, -1) / 255.0 - 0.5
    weights = np.linalg.solve(flat.T @ flat + 30 * np.eye(flat.shape[1]), flat.T @ np.eye(10)[made.train.targets])
    test = made.test.images[:, ::2, ::2].reshape(1000, -1) / 255.0 - 0.5
    assert ((test @ weights).argmax(1) == made.test.targets).mean() < 0.3


def test_synthetic_at_another_size() -> None:
    images, _ = synthetic.make(20, 0, 48)
    assert images.shape == (20, 48, 48, 3)


# --- class folders ---


def test_class_folders(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", classes=("cat", "dog", "eel"))
    data = build("folder", root)
    check(data)
    assert data.classes == ("cat", "dog", "eel")
    assert (len(data.train), len(data.val), len(data.test)) == (9, 9, 18)
    assert data.name == "pets"
    first = data.test.files[0]
    assert first == str(root / "test" / "cat" / "0.png")
    assert np.array_equal(data.test.images[0], read_image(first))  # 32 = 8/7 of 28: stored as it is
    assert data.notes == ()


def test_any_size_becomes_the_stored_square(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", side=50)
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 255
    Image.fromarray(wide).save(root / "test" / "cat" / "0.png")
    data = build("folder", root, size=28)
    assert data.test.images.shape == (12, 32, 32, 3)
    assert data.test.images[0][:, 2:-2].min() > 250  # the centre is what is left
    assert data.test.images[0].mean() > 240


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 5)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    assert np.array_equal(_folders.square(image, 16), np.full((16, 16, 3), 77, np.uint8))


def test_square_is_resize_then_centre_crop() -> None:
    image = np.asarray(Image.fromarray(noise(1, 8)).resize((96, 64), Image.Resampling.BICUBIC))
    plain = Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32))
    assert np.abs(_folders.square(image, 32).astype(int) - np.asarray(plain)).max() <= 1


def test_the_second_time_nothing_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "a")
    first = build("folder", root)
    calls: list[str] = []
    monkeypatch.setattr(_folders, "decode", lambda path: calls.append(path) or noise(0))  # type: ignore[func-returns-value]
    again = build("folder", root)
    assert calls == []
    assert again.digest == first.digest
    assert isinstance(again.test.images, np.memmap)
    moved = root.rename(tmp_path / "b")
    os.utime(moved / "train" / "cat" / "0.png", (2, 2))
    assert build("folder", moved).digest == first.digest
    assert calls == []  # the cache is keyed by content
    moved.rename(root)
    Image.fromarray(noise(5)).save(root / "test" / "cat" / "0.png")
    os.utime(root / "test" / "cat" / "0.png", (1, 1))
    assert build("folder", root).digest != first.digest
    assert len(calls) == 12  # the test part only


def test_where_the_cache_cannot_be_written_images_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "a")
    digest = build("folder", root).digest
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    data = build("folder", root)
    assert data.digest == digest
    assert "not cached: cannot write" in capsys.readouterr().err


def test_a_full_disk_is_no_fault_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    root = tree(tmp_path / "a")
    monkeypatch.setattr(os, "posix_fallocate", full)
    check(build("folder", root))
    assert "no space left" in capsys.readouterr().err
    assert not list(_folders.cache_folder().glob("images/.*tmp*"))


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    digest = build("folder", root).digest
    for path in (_folders.cache_folder() / "images").glob("*.prints.npy"):
        path.unlink()
    assert build("folder", root).digest == digest


def test_without_a_test_folder_a_fifth_is_carved_whatever_the_seed(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", splits=(".",), n=10)
    one, two = build("folder", root, seed=0), build("folder", root, seed=1)
    check(one)
    assert (len(one.train), len(one.val), len(one.test)) == (8, 8, 4)
    assert one.test.files == two.test.files
    assert one.val.files != two.val.files
    assert "no test folder" in one.notes[0]


def test_a_val_folder_is_the_validation_set(tmp_path: Path) -> None:
    data = build("folder", tree(tmp_path / "a", splits=("train", "val", "test")), val=0.5)
    check(data)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 12, 12)
    assert all("/val/" in file for file in data.val.files)


def test_a_val_folder_alone_is_the_test_set(tmp_path: Path) -> None:
    data = build("folder", tree(tmp_path / "a", splits=("train", "val")))
    check(data)
    assert all("/val/" in file for file in data.test.files)
    assert "val/ is the test set" in data.notes[0]


def test_what_is_no_image_is_counted_and_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    for name in (".DS_Store", "notes.txt", "Thumbs.db", "more.txt"):
        (root / "train" / "cat" / name).write_text("x")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "README.md").write_text("x")
    data = build("folder", root)
    check(data)
    assert data.classes == ("cat", "dog")
    assert len(data.notes) == 1
    assert data.notes[0].startswith("6 entries of")
    for kind in (".txt 2", ".DS_Store 1", ".ipynb_checkpoints 1"):
        assert kind in data.notes[0]


def test_a_leak_from_training_to_test_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    shutil.copy(root / "train" / "cat" / "3.png", root / "test" / "dog" / "0.png")
    assert build("folder", root).notes == ("warning: 1 test images are also training images (0.png = 3.png)",)


def test_odd_names_stay_readable(tmp_path: Path) -> None:
    root = tree(tmp_path / "a b ü")
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "line\nbreak.png")
    (root / "train" / "cat" / "1.png").rename(os.fsdecode(bytes(root / "train" / "cat") + b"/\xff.png"))
    (root / "train" / "cat" / "2.png").rename(root / "train" / "cat" / ("n" * 251 + ".png"))
    data = build("folder", root, val=0.0)
    check(data)
    names = "".join(data.train.files)
    assert names.encode("utf-8")
    assert "line\\nbreak.png" in names
    assert "\\udcff.png" in names


# --- wrong folders ---


@pytest.mark.parametrize("name", ["folder", "cifar10", "cifar100", "caltech101"])
def test_folders_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert str(tmp_path) in refused("no data folder", name, tmp_path / "missing")
    refused("data folder is a file", name, tmp_path / "file")
    refused("data folder is empty", name, tmp_path / "empty")
    (tmp_path / "empty" / "x.txt").write_text("x")
    refused("no class folders|no cifar|no Caltech|not a folder of class folders", name, tmp_path / "empty")


def test_the_folder_set_needs_a_folder() -> None:
    refused("which folder", "folder", None, UsageError)


def test_an_empty_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    (root / "train" / "emu").mkdir()
    data = build("folder", root)
    assert data.classes == ("cat", "dog", "emu")
    assert f"1 classes have no image in {root / 'train'} (emu)" in data.notes
    for name in ("cat", "dog"):
        shutil.rmtree(root / "test" / name)
        (root / "test" / name).mkdir()
    assert str(root / "test") in refused("no images in the class folders", "folder", root)


def test_a_class_in_test_that_training_lacks(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    (root / "test" / "emu").mkdir()
    assert str(root / "test" / "emu") in refused("class in test but not in train", "folder", root)


def test_a_class_that_test_lacks_is_noted(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    shutil.rmtree(root / "test" / "dog")
    assert f"1 classes have no image in {root / 'test'} (dog)" in build("folder", root).notes


def test_bad_images_are_counted_and_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    for number in (0, 2, 3, 5):
        path = root / "train" / "dog" / f"{number}.png"
        path.write_bytes(path.read_bytes()[: 400 * (number > 0)])
    text = refused("4 of 24 images cannot be read: empty file", "folder", tmp_path / "a")
    assert str(root / "train" / "dog" / "0.png") in text
    assert "truncated image" in text
    assert "and 1 more" in text
    with pytest.raises(_parts.UnreadableImages) as told:
        build("folder", root)
    rest = told.value.data
    check(rest)
    assert len(told.value.bad) == 4
    assert (len(rest.train) + len(rest.val), len(rest.test)) == (8, 12)
    assert not {f"{number}.png" for number in (0, 2, 3, 5)} & {Path(f).name for f in rest.train.files if "dog" in f}
    assert not list((_folders.cache_folder() / "images").glob(".*tmp*"))


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_names_that_are_no_files_do_not_hang(tmp_path: Path, kind: str) -> None:
    root = tree(tmp_path / "a")
    path = root / "train" / "cat" / "x.png"
    {
        "link": lambda: path.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    assert str(path) in refused("dangling link" if kind == "link" else "not a regular file", "folder", root)
    with pytest.raises(DataError, match="dangling link" if kind == "link" else "not a regular file"):
        read_image(path)


# --- one image ---


def saved(path: Path, image: Image.Image, **options: Any) -> np.ndarray:
    image.save(path, **options)
    return read_image(path)


def test_every_mode_has_a_defined_result(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((4, 6), 200, np.uint8))
    assert (saved(tmp_path / "l.png", grey) == 200).all()
    assert saved(tmp_path / "l.jpg", grey).shape == (4, 6, 3)
    assert (saved(tmp_path / "1.png", Image.new("1", (6, 4), 1)) == 255).all()
    deep = np.array([[0, 257, 65535]], np.uint16)
    assert saved(tmp_path / "16.png", Image.fromarray(deep))[0, :, 0].tolist() == [0, 1, 255]
    assert saved(tmp_path / "f.tif", Image.fromarray(np.array([[0.0, 0.5, 2.0]], np.float32)))[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]
    cmyk = Image.fromarray(np.zeros((4, 4, 4), np.uint8), "CMYK")
    assert (saved(tmp_path / "cmyk.jpg", cmyk) > 250).all()
    colour = Image.new("RGB", (2, 2), (255, 0, 0))
    assert (saved(tmp_path / "p.png", colour.convert("P")) == (255, 0, 0)).all()


def test_alpha_lies_on_black(tmp_path: Path) -> None:
    half = np.full((2, 2, 4), 255, np.uint8)
    half[0, :, 3] = 0
    half[1, :, 3] = 128
    for mode in ("RGBA", "LA"):
        out = saved(tmp_path / f"{mode}.png", Image.fromarray(half).convert(mode))
        assert (out[0] == 0).all()
        assert (out[1] == 128).all()
    palette = Image.fromarray(np.zeros((2, 2), np.uint8), "P")
    palette.putpalette([255, 255, 255])
    assert (saved(tmp_path / "p.png", palette, transparency=0) == 0).all()


def test_exif_turns_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert saved(tmp_path / "a.jpg", Image.new("RGB", (8, 4)), exif=exif).shape == (8, 4, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]
    out = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert (out > 250).all()


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (8_001, 10_000, 30_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x") + chunk(b"IEND", b""))
        with pytest.raises(DataError, match=r"image too large .*bomb\.png"):
            read_image(tmp_path / "bomb.png")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>", r"not an image .*a web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\x00" * 500, "not an image"),
        (b"\x89PNG\r\n\x1a\n", "damaged|not an image"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as told:
        read_image(path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_damaged_files_give_an_array_or_a_data_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(0)).save(path)
    whole = path.read_bytes()
    chance = random.Random(0)
    refusals = []
    for trial in range(60):
        content = bytearray(whole[: chance.randrange(len(whole))] if trial % 2 else whole)
        for _ in range(3 * (trial % 2 == 0)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            assert read_image(path).dtype == np.uint8
        except DataError as error:
            refusals.append(str(error))
    assert all(str(path) in text for text in refusals)
    assert len(refusals) >= 25


def test_a_missing_and_a_locked_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.png")
    Image.fromarray(noise(0)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    if os.access(tmp_path / "a.png", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="no permission"):
        read_image(tmp_path / "a.png")


# --- CIFAR ---


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a small archive folder in the official format, with torchvision's checksums set to its files'."""
    from torchvision import datasets

    def make(name: str) -> Path:
        kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        folder = tmp_path / name / kind.base_folder
        folder.mkdir(parents=True)
        names = [f"class{i:02}" for i in range(100 if name == "cifar100" else 10)]
        key = "fine_labels" if name == "cifar100" else "labels"

        def write(file: str, content: dict[str, Any]) -> list[str]:
            (folder / file).write_bytes(pickle.dumps(content))
            return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

        def batch(seed: int) -> dict[str, Any]:
            labels = list(range(len(names)))
            pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
            return {"data": pixels, key: labels}

        monkeypatch.setattr(kind, "train_list", [write(file, batch(i)) for i, (file, _) in enumerate(kind.train_list)])
        monkeypatch.setattr(kind, "test_list", [write(file, batch(9)) for file, _ in kind.test_list])
        meta = write(kind.meta["filename"], {kind.meta["key"]: names})
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta[1]})
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_official_archive(official: Callable[[str], Path], name: str) -> None:
    root = official(name)
    data = build(name, root, size=32, val=0.0)
    check(data)
    assert data.classes[3] == "class03"
    first = np.random.default_rng(0).integers(0, 256, (len(data.classes), 3072), dtype=np.uint8)[1].reshape(3, 32, 32)
    assert np.array_equal(data.train.images[1], first.transpose(1, 2, 0))
    assert data.train.files[1] == "train[1]"
    inner = next(root.iterdir())
    assert build(name, inner, size=32, val=0.0).digest == data.digest
    assert build(name, root.parent, size=32, val=0.0).digest == data.digest
    assert build(name, root, size=40).train.images.shape[1:] == (40, 40, 3)


def test_an_altered_archive_is_never_opened(official: Callable[[str], Path], tmp_path: Path) -> None:
    root = official("cifar10")
    target = next(root.iterdir()) / "data_batch_3"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    target.write_bytes(pickle.dumps(Bomb()))
    assert "data_batch_3" in refused("differs from its published checksum", "cifar10", root)
    target.unlink()
    refused("data_batch_3 is missing", "cifar10", root)
    assert not (tmp_path / "ran").exists()


def test_cifar10_classes_keep_the_official_order(tmp_path: Path) -> None:
    from zoo.data.cifar import CLASSES

    root = tree(tmp_path / "cifar10", classes=tuple(reversed(CLASSES)), n=2)
    data = build("cifar10", tmp_path, size=32)
    check(data)
    assert data.classes == CLASSES == tuple(sorted(CLASSES))
    assert "20 training images, where cifar10 has 50,000" in data.notes
    (root / "train" / "ship").rename(root / "train" / "boat")
    refused("class in test but not in train", "cifar10", root)
    (root / "test" / "ship").rename(root / "test" / "boat")
    refused("classes are not those of cifar10", "cifar10", root)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "caltech101"])
def test_without_a_network_one_line_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_DATA_DIR", raising=False)
    text = refused(r"cannot download https://\S+ \(Network is unreachable\)", name, None)
    assert "--data-dir" in text
    assert socket.getdefaulttimeout() is None


def test_the_data_dir_variable_and_the_cache_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.data.cifar import CLASSES

    tree(tmp_path / "here" / "cifar10", classes=CLASSES, n=1)
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "here"))
    assert "here" in build("cifar10", None, size=32, val=0.0).test.files[0]
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    tree(tmp_path / "cache" / "data" / "cifar10", classes=CLASSES, n=1)
    assert "cache" in build("cifar10", None, size=32, val=0.0).test.files[0]


# --- Caltech-101 ---


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


# --- every entry ---


def test_the_table_holds_for_every_data_set() -> None:
    entries = registry.table("data")
    assert {"synthetic", "cifar10", "cifar100", "caltech101", "folder"} <= set(entries)
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
