"""Generated images, no download: ten classes of five shapes in two textures; colour, position, size and angle are random.

Neither colour nor any single pixel depends on the class, so a linear model stays near chance while a small CNN learns the
classes in a minute. Shape and texture vary independently, so the reliance of a net on either can be measured.

Only operations with exact IEEE 754 rounding are used (no sines, no sums over axes), so the images have the same bits on every
machine and numpy version.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo import sampling
from zoo.data import _parts
from zoo.spec import DataSet, DataSpec

SHAPES = ("disc", "square", "triangle", "cross", "ring")
TEXTURES = ("striped", "dotted")
CLASSES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
"""Class number = 2 * shape + texture."""
TRAIN, TEST, SIDE = 7_000, 1_000, 32
SEED, DRAWS, BLOCK = 20_261_123, 24, 250
NOISE = 48.0
"""Half-width of the triangular noise, in grey levels."""


def build(folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """7,000 training images, of which a share ``val`` is the validation set, and 1,000 test images, always the same."""
    parts = []
    for stream, (split, n) in enumerate((("train", TRAIN), ("test", TEST))):
        images, targets = make(n, stream, size)
        parts.append(_parts.part(images, targets, [f"{split}[{i}]" for i in range(n)]))
    spec = SPECS["synthetic"]
    return _parts.assemble("synthetic", CLASSES, *parts, mean=spec.mean, std=spec.std, val=val, seed=seed)


def make(n: int, stream: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """``n`` images (n, side, side, 3) uint8 and targets (n,) int64, ten classes in turn; ``stream`` selects the pictures."""
    targets = np.arange(n) % len(CLASSES)
    return paint(targets // len(TEXTURES), targets % len(TEXTURES), stream, side), targets


def paint(shapes: np.ndarray, textures: np.ndarray, stream: int, side: int = SIDE) -> np.ndarray:
    """Pictures of the given shapes and textures, both (n,) of numbers, as (n, side, side, 3) uint8.

    Picture i has the same colours, position and background for every shape and texture.
    """
    n = len(shapes)
    draws = sampling.uniforms(SEED, stream, n, DRAWS)
    images = np.empty((n, side, side, 3), np.uint8)
    for start in range(0, n, BLOCK):
        part = slice(start, min(start + BLOCK, n))
        values = _scene(shapes[part], textures[part], draws[part], side)
        values += _noise(stream, start, values.shape)
        images[part] = np.floor(np.clip(values, 0, 255) + np.float32(0.5))
    return images


def _scene(shapes: np.ndarray, textures: np.ndarray, draws: np.ndarray, side: int) -> np.ndarray:
    """Background, two distractor bars and the figure, (n, side, side, 3) float32 of 0 to 255."""
    u = iter(draws.T[:, :, None, None])
    grid = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side)) - np.float32(1)
    y, x = grid[None, :, None], grid[None, None, :]

    def spread(low: float, high: float) -> np.ndarray:
        return np.float32(low) + next(u) * np.float32(high - low)

    def colour(low: float, high: float) -> np.ndarray:
        return np.stack([spread(low, high) for _ in range(3)], axis=-1)

    top, left, reach = spread(-0.4, 0.4), spread(-0.4, 0.4), spread(0.4, 0.66)
    inside = _inside(shapes, *_turn(x - left, y - top, next(u), 1 / reach))
    across, along = _turn(x, y, next(u), spread(2.8, 3.6))
    inked = _inked(textures, across + next(u), along + next(u))
    ground, light, ink = colour(70, 190), colour(0, 255), colour(-1, 1)
    # the ink differs from the fill by 80 to 160 levels in each channel, up or down
    dark = np.where(light < 128, light + 80 + 80 * np.abs(ink), light - 80 - 80 * np.abs(ink))
    tilt = spread(-30, 30) * x + spread(-30, 30) * y
    image = ground + tilt[..., None]
    for _ in range(2):
        bar = np.abs(_turn(x, y, next(u), np.float32(1))[0] - spread(-1, 1)) < np.float32(0.07)
        image = np.where(bar[..., None], np.where(ground < 130, ground + 60, ground - 60), image)
    image = np.where((inside & inked)[..., None], dark, np.where(inside[..., None], light, image))
    return image.astype(np.float32, copy=False)


def _turn(x: np.ndarray, y: np.ndarray, draw: np.ndarray, scale: np.ndarray | np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates rotated by any angle and scaled; the angle is that of (1 - t^2, 2 t), with t from the draw."""
    half = np.where(draw < 0.5, np.float32(1), np.float32(-1))
    t = np.float32(4) * draw - (np.float32(2) - half)  # -1 .. 1 in each half of the draws
    length = np.float32(1) + t * t
    cos, sin = half * (np.float32(1) - t * t) / length * scale, half * (t + t) / length * scale
    return x * cos + y * sin, y * cos - x * sin


def _inside(shapes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels inside the figure, (n, side, side) bool; ``a`` and ``b`` are its local coordinates, about -1 to 1."""
    radius2, wide, narrow = a * a + b * b, np.maximum(np.abs(a), np.abs(b)), np.minimum(np.abs(a), np.abs(b))
    triangle = (b > -0.6) & (np.abs(a) * np.float32(1.732) + b < 1.1)
    figures = [radius2 < 0.81, wide < 0.8, triangle, (wide < 1) & (narrow < 0.36), (radius2 < 1) & (radius2 > 0.25)]
    return np.choose(shapes[:, None, None], figures)


def _inked(textures: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels that the texture inks, (n, side, side) bool, half of all; one period is 1 in both coordinates."""
    a, b = a - np.floor(a) - np.float32(0.5), b - np.floor(b) - np.float32(0.5)
    return np.where(textures[:, None, None] == 0, np.abs(a) < 0.25, a * a + b * b < 0.16)


def _noise(stream: int, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """Triangular noise between -NOISE and NOISE: the difference of two random bytes."""
    count = int(np.prod(shape))
    words = sampling.words(SEED, stream, -(-count // 4), column=DRAWS + block // BLOCK)
    pairs = words.astype("<u8").view(np.uint8)[: 2 * count].reshape(2, *shape)
    return (pairs[0].astype(np.float32) - pairs[1].astype(np.float32)) * np.float32(NOISE / 255)


SPECS = {
    "synthetic": DataSpec(
        build=build,
        classes=10,
        shape=(3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        counts=(7_000, 1_000),
        balanced=True,
        source="generated: 5 shapes x 2 textures, random colours",
        recipe={"data.val": 0.142857, "data.augment": ["crop"]},
    ),
}
