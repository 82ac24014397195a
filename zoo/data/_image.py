"""Read one image file from a stranger: every fault named, nothing large decoded."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.errors import DataError

MAX_PIXELS = 64_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is read, whatever the file is called; Pillow's other readers (PostScript runs a program) stay closed."""


def shown(path: str | Path) -> str:
    """A path for a message or a table: as it is, or escaped if it has line breaks, control or undecodable characters."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def read_image(path: str | Path) -> np.ndarray:
    """The image as (H, W, 3) uint8 RGB.

    Turned upright by its EXIF tag; transparent parts over black; of an animation the first frame; grey, palette and CMYK
    converted; 16 bits and floats scaled to 8 (floats from 0 to 1).

    Raises:
        DataError: missing, not a regular file, not an image, damaged, or over 64 million pixels (seen in the header).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings on large and odd files: the first is refused here
        return decode(path)


def decode(path: str | Path) -> np.ndarray:
    """:func:`read_image` for threads: without its change of the process-wide warning filters."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError) as error:
        why = "dangling link" if Path(path).is_symlink() else getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read image ({shown(path)}, {why})") from error
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"not a regular file ({shown(path)}, {_kind(state.st_mode)})")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"image too large ({shown(path)}, {image.width} x {image.height}); at most {MAX_PIXELS:,} pixels"
                )
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # one boundary around the parser: Pillow raises many types for damaged files
        raise DataError(_reason(path, state.st_size, error)) from error


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
            page = file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg"))
        return f"not an image ({shown(path)}, {'a web page' if page else f'{size:,} bytes of another format'})"
    if "truncated" in str(error).lower():
        return f"truncated image ({shown(path)}, {size:,} bytes)"
    return f"damaged image ({shown(path)}, {shown(str(error) or type(error).__name__)[:60]})"


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        scale = 255.0 if image.mode == "F" else 1 / 257  # 65535 / 257 = 255
        return np.repeat(np.rint(values * scale).clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
