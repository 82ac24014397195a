"""Images to hold an exported file against: those of the run, saturated and constant ones, and what is right about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zoo import sampling
from zoo.console import counted
from zoo.data import _augment
from zoo.errors import DataError, UsageError
from zoo.export._graph import Exported
from zoo.export._parity import Case
from zoo.run import Run
from zoo.spec import DataSet, Split

Answer = Callable[[np.ndarray], np.ndarray]
"""Images (N, H, W, 3) uint8 to outputs (N, classes)."""
MANY = 64


@dataclass(frozen=True)
class Pictures:
    """Images (N, stored, stored, 3) uint8 to compare on, what they are, and the run's data if it is here."""

    pixels: np.ndarray
    source: str
    data: DataSet | None

    @property
    def stored(self) -> int:
        """Their side in pixels."""
        return self.pixels.shape[1]


def pictures(run: Run, count: int, data: DataSet | None = None) -> Pictures:
    """Up to ``count`` test images spread over the set, or noise if the run's data is not here."""
    try:
        data = data or run.dataset()
    except (DataError, UsageError):
        noise = np.random.default_rng(0).integers(0, 256, (min(count, 64), run.stored, run.stored, 3), np.uint8)
        return Pictures(noise, "images: synthetic noise (the run's data is not here)", None)
    return Pictures(spread(data.test, count).images, f"test images of {run.recipe.data.name}", data)


def spread(part: Split, count: int) -> Split:
    """Up to ``count`` samples, evenly over a split."""
    where = np.linspace(0, len(part) - 1, min(count, len(part))).astype(np.int64)
    return Split(np.asarray(part.images[where]), part.targets[where], [])


def calibration(run: Run, data: DataSet, count: int, seed: int) -> np.ndarray:
    """Up to ``count`` of the images the run was trained on (its long tail included), drawn by ``seed``."""
    index = sampling.long_tail(data.train.targets, run.recipe.data.imbalance, run.recipe.seed)
    chosen = np.random.default_rng(seed).permutation(index)[:count]
    return np.asarray(data.train.images[chosen])


def fed(part: np.ndarray, run: Run, exported: Exported) -> np.ndarray:
    """Images as the file takes them."""
    if exported.preprocess == "full":
        return np.ascontiguousarray(part)
    if exported.preprocess == "none":
        return normalised(part, run).numpy()
    edge = (part.shape[1] - exported.size) // 2
    cut = part[:, edge : edge + exported.size, edge : edge + exported.size]
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def normalised(part: np.ndarray, run: Run) -> Any:
    """Images as evaluation gives them to the model, by the code of evaluation: (N, 3, size, size) float32."""
    return _augment.normalise(torch.from_numpy(part.copy()), run.mean, run.std, size=run.input[1]).contiguous()


def right(run: Run, exported: Exported) -> Answer:
    """What evaluation makes of images, in float32."""

    def answer(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = exported.model(normalised(part, run))
            return (logits.softmax(1) if exported.softmax else logits).numpy()

    return answer


def cases(run: Run, exported: Exported, pixels: np.ndarray) -> list[Case]:
    """Real, saturated and constant images, right being what evaluation does with them; for ``full`` also other sizes."""
    side, truth = pixels.shape[1], right(run, exported)

    def own_truth(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return exported(torch.from_numpy(part)).numpy()

    colours = np.array([(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
    flat = np.broadcast_to(colours[:, None, None], (len(colours), side, side, 3))
    extreme = np.where(pixels[:6] > 127, 255, 0).astype(np.uint8)
    found = [Case(pixels, truth), Case(np.concatenate([flat, extreme]), truth, counted=False)]
    if exported.preprocess == "full":
        shapes = ((2 * side + 1, side + 9), (side // 2 + 1, side), (1, 1))
        rng = np.random.default_rng(1)
        found += [Case(rng.integers(0, 256, (2, *shape, 3), np.uint8), own_truth, counted=False) for shape in shapes]
    return found


def outputs(answer: Answer, part: Split) -> np.ndarray:
    """(N, classes) of all images of a split."""
    starts = counted(range(0, len(part), MANY), len(part), "accuracy", MANY)
    return np.concatenate([answer(np.asarray(part.images[start : start + MANY])) for start in starts])
