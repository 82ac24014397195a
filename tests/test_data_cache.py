"""The cache of decoded images: its pixels, the effect of damage, its use of memory and disk."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from data_cases import build, noise, tree
from PIL import Image

import zoo.files
from zoo.data import _cache
from zoo.data._pixels import View
from zoo.errors import DataError
from zoo.files import TEMPORARY, cache_folder, held


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def files(suffix: str) -> list[Path]:
    return sorted((cache_folder() / "images").glob(f"*{suffix}"))


def test_two_projects_with_equal_names_sizes_and_times_keep_their_own_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for project, value in (("a", 10), ("b", 200)):
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                folder = tmp_path / project / "imgs" / split / name
                folder.mkdir(parents=True)
                for number in range(2):
                    path = folder / f"{number}.bmp"  # of the same size whatever its pixels are
                    Image.fromarray(noise(number) // 9 + np.uint8(value)).save(path)
                    os.utime(path, (1, 1))
    means = []
    for project in ("a", "b"):
        monkeypatch.chdir(tmp_path / project)
        means.append(np.asarray(build("folder", Path("imgs")).test.images).mean())
    assert means[0] < 50 < 190 < means[1]


def test_a_file_that_is_replaced_with_its_size_and_time_kept_is_read_again(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    path = root / "test" / "cat" / "x.bmp"  # of the same size whatever its pixels are
    first = Image.new("RGB", (32, 32), "white")
    first.save(path)
    os.utime(path, (1, 1))
    assert (build("folder", root).test.images[6] == 255).all()
    size = path.stat().st_size
    Image.new("RGB", (32, 32), "black").save(path)
    assert path.stat().st_size == size
    os.utime(path, (1, 1))
    assert (build("folder", root).test.images[6] == 0).all()


def damage(kind: str, path: Path) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[len(content) // 2] ^= 4
    elif kind == "cut":
        content = content[: len(content) // 2]
    elif kind == "longer":
        content += b"x"
    elif kind == "empty":
        content = bytearray()
    elif kind == "other":
        random.Random(0).shuffle(content)
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".pixels", ".prints", ".content"])
@pytest.mark.parametrize("kind", ["flip", "cut", "longer", "empty", "other"])
def test_damage_changes_no_result_and_is_said(
    tmp_path: Path, suffix: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "a")
    before = build("folder", root)
    pixels = np.asarray(before.test.images).copy()
    for path in files(suffix):
        damage(kind, path)
    capsys.readouterr()
    again = build("folder", root)
    assert np.array_equal(np.asarray(again.test.images), pixels)
    assert again.digest == before.digest
    np.asarray(again.train.images), np.asarray(again.val.images)
    if suffix != ".content":  # it only saves reading the files
        assert "damaged" in capsys.readouterr().err
    assert np.array_equal(np.asarray(build("folder", root).test.images), pixels)
    assert "damaged" not in capsys.readouterr().err, "it was repaired"


def test_damage_while_the_file_has_changed_is_an_error(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    build("folder", root)
    for path in files(".pixels"):
        damage("flip", path)
    data = build("folder", root)
    for path in root.rglob("*.png"):
        Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(DataError, match="image changed during use"):
        np.asarray(data.test.images)


def test_images_are_stored_no_larger_than_the_files_need(tmp_path: Path) -> None:
    data = build("folder", tree(tmp_path / "a", side=8), size=224)
    assert data.test.images.shape == (12, 256, 256, 3)
    assert {path.stat().st_size for path in files(".pixels")} == {12 * 8 * 8 * 3}
    image = Image.open(data.test.files[0]).resize((256, 256), Image.Resampling.BILINEAR)
    assert np.array_equal(data.test.images[0], np.asarray(image))


def test_what_killed_processes_left_is_removed_but_not_what_another_writes(tmp_path: Path) -> None:
    folder = cache_folder() / "images"
    folder.mkdir(parents=True)
    dead, live = (folder / f".{key}-32.12345678{TEMPORARY}.pixels" for key in ("dead", "live"))
    dead.touch(), live.touch()
    with held(folder / "live-32.lock"):
        build("folder", tree(tmp_path / "a"))
        assert not dead.exists()
        assert live.exists()


@pytest.mark.parametrize("suffix", [".content", ".pixels", ".prints"])
def test_another_process_that_cleans_the_cache_removes_no_file_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    synchronised: list[Path] = []
    original = zoo.files._sync

    def sync(path: Path) -> None:
        original(path)
        if path.suffix == suffix and TEMPORARY in path.name:
            synchronised.append(path)
            code = f"from pathlib import Path; from zoo.data import _cache; _cache._remove_stale(Path({str(path.parent)!r}))"
            subprocess.run([sys.executable, "-c", code], check=True)

    monkeypatch.setattr(zoo.files, "_sync", sync)
    build("folder", tree(tmp_path / "a"))
    assert len(synchronised) == len(files(suffix)) == 2, "of the training and of the test images"


def test_a_view_reads_what_it_is_asked_for() -> None:
    images = np.stack([noise(seed, 4) for seed in range(9)])
    view = View(images, np.array([8, 0, 3, 3]))
    assert view.shape == (4, 4, 4, 3)
    assert len(view) == 4
    assert view.dtype == np.uint8
    assert view.nbytes == 4 * 48
    assert np.array_equal(np.asarray(view), images[[8, 0, 3, 3]])
    assert np.array_equal(view[np.array([3, -4])], images[[3, 8]])
    assert np.array_equal(view[1:3], images[[0, 3]])
    assert np.array_equal(view[2], images[3])
    assert np.array_equal(view[np.array([True, False, False, True])], images[[8, 3]])
    assert view[:0].shape == (0, 4, 4, 3)
    with pytest.raises(IndexError):
        view[4]


def test_carving_validation_copies_no_image(tmp_path: Path) -> None:
    data = build("folder", tree(tmp_path / "a"))
    assert isinstance(data.train.images, View)
    assert isinstance(data.val.images, View)
    assert data.train.images.images is data.val.images.images


def test_a_set_that_fits_neither_cache_nor_memory_is_decoded_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "a")
    expected = build("folder", root)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(_cache, "MOST_HELD", 10_000)
    data = build("folder", root)
    assert data.digest == expected.digest
    assert np.array_equal(np.asarray(data.test.images), np.asarray(expected.test.images))
    assert "decoded on every use" in capsys.readouterr().err


@pytest.mark.parametrize("most", [_cache.MOST_HELD, 100])
def test_small_images_are_the_same_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    root = tree(tmp_path / "a", side=20)
    for path in sorted(root.rglob("*.png"))[::3]:
        Image.open(path).resize((9, 12)).save(path)
    Image.fromarray(noise(0, 23)).save(root / "train/cat/large.png")
    expected = build("folder", root, size=32)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(_cache, "MOST_HELD", most)
    data = build("folder", root, size=32)
    assert data.digest == expected.digest
    for split in ("train", "test"):
        assert np.array_equal(np.asarray(getattr(data, split).images), np.asarray(getattr(expected, split).images))


def test_one_bad_image_does_not_decode_the_others_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "a")
    (root / "train" / "cat" / "0.png").write_bytes(b"x")
    calls: list[str] = []
    real = _cache.decode

    def counted(path: str, need: int = 0) -> Any:
        calls.append(path)
        return real(path, need)

    monkeypatch.setattr(_cache, "decode", counted)
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 24 images cannot be read"):
            build("folder", root)
    assert len(calls) == 24 + 2, "the bad one again, for its reason"


def test_more_than_ten_bad_images_are_listed_in_a_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", n=8)
    for number in range(11):
        (root / "train" / ("cat", "dog")[number % 2] / f"{number // 2}.png").write_bytes(b"x")
    with pytest.raises(DataError, match="11 of 32 images cannot be read: .* and 8 more, all listed in ") as caught:
        build("folder", root)
    listing = Path(str(caught.value).partition("listed in ")[2].partition(";")[0])
    lines = listing.read_text().splitlines()
    assert len(lines) == 11
    assert all("not an image" in line for line in lines)


def test_memory_is_bounded_by_the_blocks_not_by_the_set(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", n=50, side=8)
    for number, path in enumerate(sorted(root.rglob("*.png"))):  # 200 images, 138 MB as pixels
        Image.new("RGB", (480, 480), (number, 0, 0)).save(path)
    code = (
        "import resource, sys; from pathlib import Path; from zoo.data import folder\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); data = folder.build(Path(sys.argv[1]), size=420, val=0.5, seed=0)\n"
        "print(peak() - before, data.train.images.nbytes + data.val.images.nbytes + data.test.images.nbytes)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code, str(root)], env=env, capture_output=True, text=True, check=True)
    grown, pixels = map(int, ran.stdout.split())
    assert pixels > 130e6
    assert grown < 90e6
