"""Read an image file from an unknown source: every error is reported, nothing too large is decoded."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.console import print_line
from zoo.errors import DataError
from zoo.files import is_link

MAX_PIXELS = 64_000_000
MAX_JPEG_PIXELS = 1_000_000_000
"""Baseline JPEG files up to this size are read too: their decoder scales down while reading and never holds the full picture."""
LARGE_PIXELS = 16_000_000
"""Larger pictures are scaled down by an integer factor during decoding, if the caller needs less."""
CANDIDATES = (
    "PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "PCX", "QOI", "SGI",
)  # fmt: skip
"""Pillow's readers of plain images. Those that run programs (EPS), read other files or have no signature (TGA) are excluded."""
HEIC = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
"""Brands of the photos of iPhones, which Pillow does not read."""
LONGEST = 500
"""Most characters of a path in a message; a column of a list that holds images as text would print thousands."""
UNFINISHED = ("decoder object", "broken data stream", "not enough image data")
"""Errors of the decoders of WebP, JPEG 2000 and QOI for a file that ends too early."""
_DARK: set[int] = set()
"""Numbers of bits of dark 16-bit images that a warning has named."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transform that undoes each value of the orientation tag (EXIF 2.32, section 4.6.4, tag 0x0112)."""


@cache
def formats() -> tuple[str, ...]:
    """The formats that this Pillow reads of :data:`CANDIDATES`; the content decides, not the file name."""
    Image.init()
    return tuple(name for name in CANDIDATES if name in Image.OPEN)


@cache
def suffixes() -> tuple[str, ...]:
    """The endings of these formats, lower case; for files that are listed without being opened."""
    known = formats()
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in known))


def is_image(path: str | Path) -> bool:
    """Whether a file is one of :func:`formats` by its header; False if it cannot be read."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would block
            return False
        with Path(path).open("rb") as file:
            likely = begins_as_image(file.read(16))
    except (OSError, ValueError):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return likely and shorter_side(path) > 0


def begins_as_image(prefix: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of one of :func:`formats`."""
    checks = [Image.OPEN[name][1] for name in formats()]
    return any(check is not None and _accepts(check, prefix) for check in checks)


def _accepts(check: object, prefix: bytes) -> bool:
    with contextlib.suppress(Exception):  # a reader that meets too few bytes
        return check(prefix) is True  # type: ignore[operator]
    return False


def shown(path: str | Path) -> str:
    """A path for a message or a table; escaped if it has line breaks, control or undecodable characters, shortened above 500."""
    text = str(path)
    if not text.isprintable():
        with contextlib.suppress(UnicodeError):  # UTF-8 names in another locale
            text = os.fsencode(text).decode("utf-8", "surrogateescape")
    text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= LONGEST else f"{text[:200]}...{text[-50:]}"


def read_image(source: str | Path | Image.Image, need: int = 0, name: str = "") -> np.ndarray:
    """The image of a file, or a Pillow image with a ``name`` for errors, as (H, W, 3) uint8 RGB.

    Turned upright by its EXIF tag; transparent parts over black; of an animation the first frame; grey, palette and CMYK
    converted; more than 8 bits and floats scaled to 8. Metadata that cannot be read is ignored. With ``need``, an image over
    16 million pixels is scaled down by a whole factor that leaves the shorter side at least twice as long as that.

    Raises:
        DataError: missing, not a regular file, not an image, damaged, or over 64 million pixels (seen in the header; of a
            baseline JPEG over a thousand million).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings on large and odd files; large ones are rejected below
        if not isinstance(source, Image.Image):
            return decode(source, need)
        try:
            return upright(source, name, need)
        except DataError:
            raise
        except Exception as error:  # a file that Pillow reads only now
            raise DataError(f"damaged image ({name}, {shown(str(error) or type(error).__name__)[:60]})") from error


def decode(path: str | Path, need: int = 0) -> np.ndarray:
    """:func:`read_image` for threads: without its change of the process-wide warning filters."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError) as error:
        why = "dangling link" if is_link(path) else getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read image ({shown(path)}, {why})") from error
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"not a regular file ({shown(path)}, {_kind(state.st_mode)})")
    try:
        with _opened(path) as image:
            _scale_while_reading(image, path, need)
            return upright(image, path, need)
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise DataError(_reason(path, state.st_size, error)) from error


def upright(image: Image.Image, name: str | Path, need: int = 0) -> np.ndarray:
    """An opened image as :func:`read_image` returns it; ``name`` is for errors, which can be of any type of Pillow's."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    reduced = _reduced(image, need)
    return _rgb(reduced if turn is None else reduced.transpose(turn), name)


def shorter_side(path: str | Path) -> int:
    """The shorter side in pixels by the header alone; 0 if that cannot be read."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would block
            return 0
        with Image.open(path, formats=formats()) as image:
            return min(image.size)
    except Exception:  # decoding reports the error
        return 0


def _opened(path: str | Path) -> Image.Image:
    try:
        return Image.open(path, formats=formats())
    except Image.DecompressionBombError:  # Pillow's own limit ignores that a JPEG can be scaled down while reading
        with Path(path).open("rb") as file:
            if not file.read(3) == b"\xff\xd8\xff":
                raise
        from PIL import JpegImagePlugin

        return JpegImagePlugin.JpegImageFile(path)


def _scale_while_reading(image: Image.Image, path: str | Path, need: int) -> None:
    """Let a JPEG's decoder halve, quarter or eighth a large picture; DataError if it is still too large."""
    width, height = image.size
    if image.format in ("JPEG", "MPO") and width * height <= MAX_JPEG_PIXELS:
        progressive = "progressive" in image.info or "progression" in image.info  # these decoders hold the full picture
        factor = 1 if progressive else next((f for f in (1, 2, 4) if width * height / f**2 <= MAX_PIXELS), 8)
        if need and width * height > LARGE_PIXELS:
            factor = max(factor, min(width, height) // (2 * need))
        if factor > 1:
            image.draft(None, (max(1, width // factor), max(1, height // factor)))
    if image.width * image.height > MAX_PIXELS or (width * height > MAX_PIXELS and "progressive" in image.info):
        raise DataError(f"image too large ({shown(path)}, {width} x {height}); at most {MAX_PIXELS:,} pixels")


def _reduced(image: Image.Image, need: int) -> Image.Image:
    factor = min(image.size) // (2 * need) if need and image.width * image.height > LARGE_PIXELS else 1
    if factor < 2 or image.mode in ("1", "P", "PA") or image.mode.startswith("I;"):
        return image
    return image.reduce(factor)


def _orientation(image: Image.Image) -> int:
    """The value of the orientation tag, 1 (upright) if there is none or the metadata is broken, which is never an error."""
    with contextlib.suppress(Exception):  # each reader raises its own types
        value = image.getexif().get(0x0112)
        return value if isinstance(value, int) else 1
    return 1


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _reason(path: str | Path, size: int, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"cannot read image ({shown(path)}, no permission)"
    if isinstance(error, Image.DecompressionBombError):
        return f"image too large ({shown(path)}); at most {MAX_PIXELS:,} pixels"
    if size == 0:
        return f"empty file ({shown(path)}, 0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        with Path(path).open("rb") as file:
            first = file.read(512)
        if begins_as_image(first[:16]):
            return f"truncated or damaged image ({shown(path)}, {size:,} bytes)"
        if first[4:8] == b"ftyp" and first[8:12] in HEIC:
            return f"cannot read HEIC ({shown(path)}); convert it to JPEG"
        page = first.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg"))
        return f"not an image ({shown(path)}, {'a web page' if page else f'{size:,} bytes of another format'})"
    if "truncated" in str(error).lower():
        return f"truncated image ({shown(path)}, {size:,} bytes)"
    if any(words in str(error).lower() for words in UNFINISHED):
        return f"truncated or damaged image ({shown(path)}, {size:,} bytes)"
    return f"damaged image ({shown(path)}, {shown(str(error) or type(error).__name__)[:60]})"


def _rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_eight_bits(np.asarray(image), path)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _warn_dark(bits: int, path: str | Path) -> None:
    """Warn, once for each number of bits, of a 16-bit file that uses few of them."""
    if bits not in _DARK:
        _DARK.add(bits)
        print_line(
            f"warning  16-bit image with values of {bits} bits is almost black ({shown(path)}); scale such images to 16 bits"
        )


def _eight_bits(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Grey values (H, W) as uint8. 16-bit files are divided by 257; 32 bits and floats, which have no fixed white level, by range."""
    if values.dtype == np.uint16 or values.dtype == np.dtype(">u2"):
        if 0 < (top := int(values.max(initial=0))) < 4096:
            _warn_dark(top.bit_length(), path)
        return np.rint(values / 257).astype(np.uint8)  # 65535 / 257 = 255
    wide = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    top = wide.max(initial=0)
    if values.dtype.kind == "f":
        scale = 255.0 if top <= 2 else 1.0  # 0 to 1, with some tolerance for resampling; else 0 to 255
    elif top > 65535:
        raise DataError(f"grey values up to {top:,.0f} ({shown(path)}); save it with 8 or 16 bits")
    else:
        scale = 1.0 if top <= 255 else 1 / 257
    return np.rint(wide * scale).clip(0, 255).astype(np.uint8)


def listed(images: Iterable[Any], top: int, kinds: tuple[type, ...] = (str, Path)) -> list[Any]:
    """The argument ``images`` as a list; TypeError unless all are of ``kinds``, ValueError for ``top`` answers below 1."""
    what = "paths of image files" if len(kinds) == 2 else "paths, Pillow images, arrays or tensors"
    if isinstance(images, (str, bytes, Path, Image.Image)) or not isinstance(images, Iterable):
        raise TypeError(f"images is {type(images).__name__}; give a list of {what}")
    if getattr(images, "ndim", 4) != 4:
        raise TypeError(f"images has the shape {tuple(getattr(images, 'shape', ()))}; give a list of images, or (n, H, W, 3)")
    found = list(images)
    if other := [each for each in found if not isinstance(each, kinds)]:
        raise TypeError(f"images has a {type(other[0]).__name__}; give {what}")
    if not isinstance(top, (int, np.integer)) or top < 1:
        raise ValueError(f"top = {top} is not allowed; give a whole number of at least 1")
    return found
