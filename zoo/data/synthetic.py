"""Generated images, no download: ten classes of five shapes in two textures, colours and places at random.

Colour says nothing about the class and neither does any single pixel, so a linear model stays near guessing while a small CNN
learns the classes in a minute; shape and texture vary independently, so either can be tested alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo import sampling
from zoo.data import _folders
from zoo.spec import DataSet, DataSpec

SHAPES = ("disc", "square", "triangle", "cross", "ring")
TEXTURES = ("plain", "striped")
CLASSES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
TRAIN, TEST, SIDE, DRAWS = 7_000, 1_000, 32, 20


def build(folder: Path | None, *, size: int, val: float, seed: int) -> DataSet:
    """7,000 training images (a seventh for validation at the default ``val`` of 1/7) and 1,000 test images, always the same."""
    side = max(size, SIDE)
    train, test = (make(n, key, side) for n, key in ((TRAIN, 1), (TEST, 2)))
    name = "synthetic"
    spec = SPECS[name]
    parts = [
        (images, targets, [f"{split}[{i}]" for i in range(len(targets))])
        for split, (images, targets) in (("train", train), ("test", test))
    ]
    return _folders.assemble(name, CLASSES, *parts, mean=spec.mean, std=spec.std, val=val, seed=seed)


def make(n: int, key: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """``n`` images (n, side, side, 3) uint8 and targets (n,) int64, ten classes in turn; ``key`` chooses the stream."""
    targets = np.arange(n) % len(CLASSES)
    draws = sampling.uniforms(20_261_123, key, n, DRAWS)
    noise = sampling.generator(20_261_123, key + 100)
    images = np.empty((n, side, side, 3), np.uint8)
    for start in range(0, n, 500):
        part = slice(start, start + 500)
        drawn = _paint(targets[part], draws[part], side)
        drawn += noise.normal(0, 0.06, drawn.shape).astype(np.float32)
        images[part] = (drawn.clip(0, 1) * 255).round().astype(np.uint8)
    return images, targets


def _paint(targets: np.ndarray, u: np.ndarray, side: int) -> np.ndarray:
    """Images in [0, 1], (n, side, side, 3) float32: background of two colours, one distractor bar, the figure on top."""
    grid = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    y, x = grid[None, :, None], grid[None, None, :]

    def at(i: int) -> np.ndarray:
        return u[:, i, None, None]

    turn = at(0) * np.float32(2 * np.pi)
    reach = 0.38 + 0.22 * at(1)
    left, top = (at(2) - 0.5) * 0.7, (at(3) - 0.5) * 0.7
    cos, sin = np.cos(turn), np.sin(turn)
    a = ((x - left) * cos + (y - top) * sin) / reach
    b = ((y - top) * cos - (x - left) * sin) / reach
    inside = _shape(targets // len(TEXTURES), a, b)
    fill = u[:, 4:7][:, None, None, :]
    other = (u[:, 7:10] * 0.6 + (fill[:, 0, 0] > 0.5) * -0.4 + 0.4).clip(0, 1)[:, None, None, :]  # apart from the fill
    slope = at(16) * np.float32(np.pi)
    wave = np.sin((x * np.cos(slope) + y * np.sin(slope)) * np.float32(17.0) + at(17) * 6.28)
    striped = ((targets % len(TEXTURES)) == 1)[:, None, None] & (wave > 0)
    ground = (0.5 * u[:, 10:13] + 0.25)[:, None, None, :] * (0.8 + 0.2 * (x * (at(18) * 2 - 1) + y * (at(19) * 2 - 1)))[
        ..., None
    ]
    bar = np.abs(x * np.sin(at(13) * 6.28) - y * np.cos(at(13) * 6.28) - (at(14) * 2 - 1)) < 0.06 + 0.06 * at(15)
    image = np.where(bar[..., None], 1 - ground, ground)
    image = np.where(inside[..., None], fill, image)
    return np.where((inside & striped)[..., None], other, image).astype(np.float32)


def _shape(kind: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which pixels lie inside, (n, side, side) bool, in the figure's own coordinates ``a``, ``b`` (about -1 to 1)."""
    radius = np.sqrt(a * a + b * b)
    triangle = (b > -0.6) & (np.abs(a) * 1.732 + b < 1.1)
    cross = (np.maximum(np.abs(a), np.abs(b)) < 1) & (np.minimum(np.abs(a), np.abs(b)) < 0.33)
    square = np.maximum(np.abs(a), np.abs(b)) < 0.8
    return np.choose(kind[:, None, None], [radius < 0.9, square, triangle, cross, (radius < 1) & (radius > 0.55)])


SPECS = {
    "synthetic": DataSpec(
        build=build, classes=10, shape=(3, 32, 32), mean=(0.428, 0.428, 0.428), std=(0.177, 0.177, 0.177), counts=(7_000, 1_000),
        source="generated: 5 shapes x 2 textures, random colours", recipe={"data.val": 0.142857, "data.augment": ["crop"]},
    ),
}  # fmt: skip
