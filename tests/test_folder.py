"""Class folders: reading, splitting, and errors for malformed folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import build, check, noise, refused, tree
from PIL import Image

from zoo import files
from zoo.data import _cache, _folders, _parts, _pixels
from zoo.data._image import read_image
from zoo.errors import DataError, UsageError


def test_class_folders(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", classes=("cat", "dog", "eel"))
    data = build("folder", root)
    check(data)
    assert data.classes == ("cat", "dog", "eel")
    assert (len(data.train), len(data.val), len(data.test)) == (9, 9, 18)
    assert data.name == "pets"
    first = data.test.files[0]
    assert first == str(root / "test" / "cat" / "0.png")
    assert np.array_equal(data.test.images[0], read_image(first))  # 32 = 8/7 of 28: stored without resizing
    assert data.notes == ()


def test_any_size_becomes_the_stored_square(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", side=50)
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 255
    Image.fromarray(wide).save(root / "test" / "cat" / "0.png")
    data = build("folder", root, size=28)
    assert data.test.images.shape == (12, 32, 32, 3)
    assert data.test.images[0][:, 2:-2].min() > 250  # the crop keeps the centre
    assert data.test.images[0].mean() > 240


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 5)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    assert np.array_equal(_pixels.square(image, 16), np.full((16, 16, 3), 77, np.uint8))


def test_square_is_resize_then_centre_crop() -> None:
    image = np.asarray(Image.fromarray(noise(1, 8)).resize((96, 64), Image.Resampling.BICUBIC))
    plain = Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32))
    assert np.abs(_pixels.square(image, 32).astype(int) - np.asarray(plain)).max() <= 1


def test_the_second_time_nothing_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "a")
    first = build("folder", root)
    calls: list[str] = []
    monkeypatch.setattr(_cache, "decode", lambda path, need: calls.append(path) or noise(0))  # type: ignore[func-returns-value]
    again = build("folder", root)
    assert calls == []
    assert again.digest == first.digest
    assert isinstance(again.test.images, _pixels.Cached)
    assert np.array_equal(again.test.images, first.test.images)
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
    assert not list(files.cache_folder().glob("images/.*tmp*"))


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


def test_a_leak_from_training_to_test_is_reported(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    shutil.copy(root / "train" / "cat" / "3.png", root / "test" / "dog" / "0.png")
    assert build("folder", root).notes == (
        "warning: 1 test images are also training images (test/dog/0.png = train/cat/3.png)",
    )


def test_every_copy_in_another_split_is_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", splits=("train", "val", "test"))
    for copy in ("test/dog/0", "test/dog/1", "val/cat/0"):
        shutil.copy(root / "train" / "cat" / "3.png", root / f"{copy}.png")
    shutil.copy(root / "val" / "dog" / "1.png", root / "test" / "cat" / "5.png")
    assert [note.partition(" (")[0] for note in build("folder", root).notes] == [
        "warning: 2 test images are also training images",
        "warning: 1 validation images are also training images",
        "warning: 3 test images are also validation images",
    ]


def test_copies_inside_the_training_images_reach_the_validation_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    for number in (0, 1, 2, 4, 5):
        shutil.copy(root / "train" / "cat" / "3.png", root / "train" / "cat" / f"{number}.png")
    assert build("folder", root).notes[0].startswith("warning: 3 validation images are also training images")


def test_a_copy_is_found_if_one_split_has_larger_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", side=16)
    Image.fromarray(noise(0, 90)).save(root / "train/cat/large.png")
    shutil.copy(root / "train/cat/3.png", root / "test/dog/0.png")
    data = build("folder", root)
    assert data.notes == ("warning: 1 test images are also training images (test/dog/0.png = train/cat/3.png)",)
    assert build("folder", root).digest == data.digest, "now from the cache"


def test_classes_whose_escaped_names_are_equal_are_an_error(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", classes=("a\nb", "a\\nb", "c"))
    with pytest.raises(DataError, match=r"two classes have one name \(a, a\\nb, .*rename one"):
        build("folder", root)


def test_an_image_in_two_classes_is_reported(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", splits=("train", "val", "test"))
    shutil.copy(root / "train/cat/3.png", root / "train/dog/0.png")
    shutil.copy(root / "train/cat/3.png", root / "train/cat/4.png")
    for number in (1, 2):
        shutil.copy(root / f"test/cat/{number}.png", root / f"test/dog/{number}.png")
    assert build("folder", root).notes == (
        "warning: 1 training images are also in another class (train/dog/0.png = train/cat/4.png)",
        "warning: 2 test images are also in another class (test/dog/1.png = test/cat/1.png, test/dog/2.png = test/cat/2.png)",
    )


def test_images_in_subfolders_of_a_class_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "a", side=8)
    for patient in ("p1", "p2/left"):
        shutil.copytree(root / "train/dog", root / "train/cat" / patient)
    for strange in (".ipynb_checkpoints", "__MACOSX"):
        shutil.copytree(root / "train/dog", root / "train/cat" / strange)
    (root / "train/cat/p1/notes.txt").write_text("x")
    (root / "train/cat/p1/up").symlink_to("..")
    monkeypatch.chdir(root / "train")
    for place in (root / "train", Path()):
        listing, notes = _folders.scan(place, ["cat", "dog"])
        assert np.bincount(listing.targets).tolist() == [18, 6]
        assert [path.split("train/")[-1] for path in listing.paths[6:13]] == [
            *(f"cat/p1/{n}.png" for n in range(6)), "cat/p2/left/0.png",
        ]  # fmt: skip
        assert "4 entries of" in notes[0]
        assert "12 images of" in notes[1]
        assert notes[1].endswith("are in subfolders of class folders (e.g. cat/p1): read too")


@pytest.mark.parametrize("splits", [("train", "test"), (".",)])
def test_names_in_the_manifest_do_not_depend_on_the_place(tmp_path: Path, splits: tuple[str, ...]) -> None:
    root = tree(tmp_path / "a", splits=splits)
    before = build("folder", root).manifest
    assert np.array_equal(build("folder", root.rename(tmp_path / "b")).manifest, before)


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
    refused("no folder given", "folder", None, UsageError)


def test_an_empty_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    (root / "train" / "emu").mkdir()
    data = build("folder", root)
    assert data.classes == ("cat", "dog", "emu")
    assert f"1 class has no image in {root / 'train'} (emu)" in data.notes
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
    assert f"1 class has no image in {root / 'test'} (dog)" in build("folder", root).notes


def test_bad_images_are_counted_and_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    for number in (0, 2, 3, 5):
        path = root / "train" / "dog" / f"{number}.png"
        path.write_bytes(path.read_bytes()[: 400 * (number > 0)])
    text = refused("4 of 24 images cannot be read: empty file", "folder", tmp_path / "a")
    assert str(root / "train" / "dog" / "0.png") in text
    assert "truncated image" in text
    assert "and 1 more" in text
    with pytest.raises(_parts.UnreadableImages) as caught:
        build("folder", root)
    rest = caught.value.data
    check(rest)
    assert len(caught.value.bad) == 4
    assert (len(rest.train) + len(rest.val), len(rest.test)) == (8, 12)
    assert not {f"{number}.png" for number in (0, 2, 3, 5)} & {Path(f).name for f in rest.train.files if "dog" in f}
    assert not list((files.cache_folder() / "images").glob(".*tmp*"))


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


def test_classes_without_test_images_are_named(tmp_path: Path) -> None:
    """A fifth of two images is none."""
    for name, count in (("cat", 12), ("dog", 12), ("fox", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = np.random.default_rng([count, number, len(name)]).integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    made = build("folder", tmp_path, val=0.0)
    assert "warning: 1 of 3 classes have no test images (fox); the macro accuracy leaves them out" in made.notes


@pytest.mark.parametrize(
    ("encoding", "says"),
    [("utf-16", r"UTF-16\); save it as CSV in UTF-8"), ("latin-1", r"byte 0xe9 is not UTF-8, perhaps Latin-1\)")],
)
def test_a_list_in_another_encoding_is_named(encoding: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes("path,label\na.png,caf\u00e9\n".encode(encoding))
    refused(says, "list", path)
