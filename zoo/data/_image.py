"""Read one image file from a stranger: every fault named, nothing large decoded."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from zoo.spec import DataError

MAX_PIXELS = 64_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """The image as (H, W, 3) uint8 RGB: turned by its EXIF tag, alpha over black, the first frame, 16 bits scaled to 8.

    Raises:
        DataError: missing, not a regular file, not an image, damaged, or over 64 million pixels (seen in the header).
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"cannot read image ({str(path)!r}, {error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"not a regular file ({str(path)!r})")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"image too large ({str(path)!r}, {image.width} x {image.height}); at most {MAX_PIXELS:,} pixels"
                )
            image.load()
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except DataError:
        raise
    except Exception as error:  # one boundary around the parser: Pillow raises many types for damaged files
        why = "not an image" if type(error).__name__ == "UnidentifiedImageError" else f"damaged or truncated image, {error}"
        raise DataError(f"{why} ({str(path)!r})") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        image = Image.fromarray((values / (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")
