"""One image file: modes, rotation, animations, bombs, damage."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import noise
from PIL import Image

from zoo.data import _image
from zoo.data._image import read_image
from zoo.errors import DataError


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
    exif[0x0112] = 6  # rotate by 90 degrees
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
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


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


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "ico", "avif", "jp2", "qoi", "bmp"])
def test_a_file_that_ends_too_early_is_called_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    try:
        Image.fromarray(noise(0)).save(path, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow cannot write {suffix}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with contextlib.suppress(DataError):
        read_image(path)  # some decoders take a picture whose last lines are missing
        return
    with pytest.raises(DataError, match=r"truncated (or damaged )?image"):
        read_image(path)


def test_a_missing_and_a_locked_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.png")
    Image.fromarray(noise(0)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    if os.access(tmp_path / "a.png", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="no permission"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(("top", "bits"), [(255, 8), (4095, 12), (60_000, 0), (0, 0)])
def test_a_16_bit_file_with_few_bits_is_named_once(
    top: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_image, "_DARK", set())
    for name in ("a.png", "b.png"):
        Image.fromarray(np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)).save(tmp_path / name)
        _image.read_image(tmp_path / name)
    said = [line for line in capsys.readouterr().err.splitlines() if "almost black" in line]
    assert len(said) == bool(bits) and all(f"values of {bits} bits" in line and "a.png" in line for line in said)
