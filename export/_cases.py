"""Images for checking an exported file: those of the run, saturated and constant ones, with their reference outputs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

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
NOISE = "images: synthetic noise (the run's data was not found)"


@dataclass(frozen=True)
class Pictures:
    """Images (N, stored, stored, 3) uint8 to compare on, their description, and the run's data if available."""

    pixels: np.ndarray
    source: str
    data: DataSet | None
    at: np.ndarray | None = None
    """Their numbers in the test set."""

    @property
    def stored(self) -> int:
        """Their side in pixels."""
        return self.pixels.shape[1]


def pictures(run: Run, count: int) -> Pictures:
    """Up to ``count`` test images (:func:`places`), or noise if the run's data is not available."""
    try:
        data = run.dataset()
    except (DataError, UsageError):
        noise = np.random.default_rng(0).integers(0, 256, (min(count, 64), run.stored, run.stored, 3), np.uint8)
        return Pictures(noise, NOISE, None)
    at = places(data.test, count)
    return Pictures(
        np.asarray(data.test.images[at]),
        f"test images of {run.given.data.name if run.given.data else run.recipe.data.label}",
        data,
        at,
    )


def spread(part: Split, count: int) -> Split:
    """Up to ``count`` samples of a split (:func:`places`)."""
    where = places(part, count)
    return Split(np.asarray(part.images[where]), part.targets[where], [])


def places(part: Split, count: int) -> np.ndarray:
    """The rising numbers of up to ``count`` samples without repetition, of each class in proportion to its size."""
    order = np.argsort(part.targets, kind="stable")
    return np.sort(order[np.linspace(0, len(part) - 1, min(count, len(part))).astype(np.int64)])


def fed(part: np.ndarray, exported: Exported) -> np.ndarray:
    """Images in the form of the file's input."""
    if part.dtype != np.uint8 or exported.preprocess == "full":
        return np.ascontiguousarray(part)
    if exported.preprocess == "none":
        return normalised(part, exported).numpy()
    edge = (part.shape[1] - exported.size) // 2
    cut = part[:, edge : edge + exported.size, edge : edge + exported.size]
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def normalised(part: np.ndarray, exported: Exported) -> Tensor:
    """Images preprocessed by the code of evaluation: (N, 3, size, size) float32."""
    pixels = torch.from_numpy(part.copy())
    if part.dtype != np.uint8:  # they are the model's inputs
        return pixels
    return _augment.normalise(pixels, exported.mean, exported.std, size=exported.size).contiguous()


def right(exported: Exported) -> Answer:
    """Outputs of evaluation for images, in float32."""
    model, layout = _laid_out(exported)

    def answer(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(normalised(part, exported).contiguous(memory_format=layout))
            return np.asarray(exported.finish(logits).numpy())

    return answer


def _laid_out(exported: Exported) -> tuple[nn.Module, torch.memory_format]:
    """A copy of the model in channels_last, the layout of :func:`zoo.run.evaluate`, in which CPUs compute convolutions faster (by
    15 % for ResNet-32); the model itself if it has no convolution, or a ``view`` that needs the other layout."""
    model, layout = exported.model, torch.channels_last
    if len(exported.shape) == 3 and any(isinstance(each, nn.Conv2d) for each in model.modules()):
        with contextlib.suppress(RuntimeError), torch.inference_mode():
            copied = copy.deepcopy(model).to(memory_format=layout)
            copied(torch.zeros(1, *exported.shape).contiguous(memory_format=layout))
            return copied, layout
    return model, torch.contiguous_format


def cases(exported: Exported, images: np.ndarray) -> list[Case]:
    """Real, saturated and constant images with evaluation as reference; for ``full`` also other sizes."""
    truth = right(exported)

    def own_truth(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(exported(torch.from_numpy(part)).numpy())

    found = [Case(images, truth), Case(extremes(images), truth, counted=False)]
    if exported.preprocess == "full":
        side, rng = images.shape[1], np.random.default_rng(1)
        shapes = ((2 * side + 1, side + 9), (side // 2 + 1, side), (1, 1))
        found += [Case(rng.integers(0, 256, (2, *shape, 3), np.uint8), own_truth, counted=False) for shape in shapes]
    return found


def extremes(images: np.ndarray) -> np.ndarray:
    """Six constant images, and six of ``images`` saturated."""
    if images.dtype != np.uint8:
        low, high = float(images.min()), float(images.max())
        levels = np.linspace(low, high, 6, dtype=np.float32).reshape(-1, *[1] * (images.ndim - 1))
        saturated = np.where(images[:6] > (low + high) / 2, np.float32(high), np.float32(low))
        return np.concatenate([np.broadcast_to(levels, (6, *images.shape[1:])), saturated])
    colours = np.array([(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
    flat = np.broadcast_to(colours[:, None, None], (len(colours), *images.shape[1:]))
    return np.concatenate([flat, np.where(images[:6] > 127, 255, 0).astype(np.uint8)])


def outputs(answer: Answer, part: Split, known: Mapping[int, np.ndarray] | None = None) -> np.ndarray:
    """(N, classes) outputs of all images of a split; ``known`` has those that are already computed, by number."""
    known = known or {}
    left = np.array([number for number in range(len(part)) if number not in known], np.int64)
    starts = counted(range(0, len(left), MANY), len(left), "accuracy", MANY)
    found = dict(known)
    for start in starts:
        at = left[start : start + MANY]
        found.update(zip(at.tolist(), answer(np.asarray(part.images[at]))))
    return np.stack([found[number] for number in range(len(part))])
