"""Augmentation of whole batches on the device: uint8 (N, H, W, 3) in, normalised (N, 3, H, W) in channels_last memory out.

Every op reads its own columns of the uniform draws of a sample, so adding an op leaves the draws of the others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.spec import UsageError, did_you_mean

_COLUMNS = {"crop": 0, "rcrop": 0, "flip": 2, "cutout": 3, "mix": 5}
DRAWS = 8
"""Columns of draws a sample."""


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32, size: int | None = None
) -> Tensor:
    """(x / 255 - mean) / std of uint8 (N, H, W, 3), its centre cut to ``size`` if larger; (N, 3, H, W) channels_last."""
    if size is not None and images.shape[1] > size:
        top = (images.shape[1] - size) // 2
        images = images[:, top : top + size, top : top + size]
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=images.device)
    return torch.addcmul(shift, images.float(), scale).to(dtype).permute(0, 3, 1, 2)


def augment(
    images: Tensor, draws: Tensor, ops: Sequence[str], mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Apply ``ops`` in order, then :func:`normalise`; ``draws`` is (N, DRAWS) uniform in [0, 1).

    ``crop[:pad]`` pads by reflection (4) and crops back, ``rcrop:size`` crops to a size, ``flip`` mirrors half of the
    images, ``cutout[:side]`` sets a square to the mean (8; DeVries and Taylor 2017).

    Raises:
        UsageError: an unknown op.
    """
    for op, argument in (parse(text) for text in ops):
        if op != "cutout":
            images = _OPS[op](images, draws, argument)
    inputs = normalise(images, mean, std, dtype)
    for op, argument in (parse(text) for text in ops):
        if op == "cutout":
            inputs = _cutout(inputs, draws, argument)
    return inputs


def parse(text: str) -> tuple[str, int]:
    """``crop:8`` as its name and its number."""
    name, _, number = text.partition(":")
    if name not in _DEFAULTS or not (number or "1").isdigit():
        raise UsageError(f"no augmentation {text!r}{did_you_mean(name, _DEFAULTS)}; there are {', '.join(_DEFAULTS)}, e.g. crop:4")
    return name, int(number or _DEFAULTS[name])


def _window(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Cut a (size, size) window of each image at its own place; 16 rows of memory at a time are contiguous."""
    steps = torch.arange(size, device=images.device)
    rows = (top[:, None] + steps)[:, :, None]
    columns = (left[:, None] + steps)[:, None, :]
    return images[torch.arange(len(images), device=images.device)[:, None, None], rows, columns]


def _offsets(draws: Tensor, column: int, span: int) -> Tensor:
    return (draws[:, column] * span).long().clamp_(max=span - 1)


def _crop(images: Tensor, draws: Tensor, pad: int) -> Tensor:
    size = images.shape[1]
    reach = torch.arange(-pad, size + pad, device=images.device).abs()
    mirror = torch.where(reach >= size, 2 * (size - 1) - reach, reach)
    at = _COLUMNS["crop"]
    top, left = _offsets(draws, at, 2 * pad + 1), _offsets(draws, at + 1, 2 * pad + 1)
    steps = torch.arange(size, device=images.device)
    rows, columns = mirror[top[:, None] + steps][:, :, None], mirror[left[:, None] + steps][:, None, :]
    return images[torch.arange(len(images), device=images.device)[:, None, None], rows, columns]


def _rcrop(images: Tensor, draws: Tensor, size: int) -> Tensor:
    at, span = _COLUMNS["rcrop"], images.shape[1] - size + 1
    if span < 1:
        raise UsageError(f"augmentation rcrop:{size} is larger than the images ({images.shape[1]} pixels)")
    return _window(images, _offsets(draws, at, span), _offsets(draws, at + 1, span), size)


def _flip(images: Tensor, draws: Tensor, _: int) -> Tensor:
    mirrored = draws[:, _COLUMNS["flip"]] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


def _cutout(inputs: Tensor, draws: Tensor, side: int) -> Tensor:
    at, size = _COLUMNS["cutout"], inputs.shape[-1]
    steps = torch.arange(size, device=inputs.device)
    inside = []
    for column in (at, at + 1):
        start = _offsets(draws, column, size)[:, None] - side // 2
        inside.append((steps >= start) & (steps < start + side))
    return inputs.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


_OPS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"crop": _crop, "rcrop": _rcrop, "flip": _flip, "cutout": _cutout}
_DEFAULTS = {"crop": 4, "rcrop": 224, "flip": 1, "cutout": 8}


def mix(inputs: Tensor, targets: Tensor, classes: int, draws: Tensor, *, mixup: float = 0.0, cutmix: float = 0.0) -> tuple[Tensor, Tensor]:
    """Blend each sample with its neighbour in the batch; soft targets (N, classes) float32.

    Mixup (Zhang et al. 2018) weights the two by Beta(mixup, mixup), cutmix (Yun et al. 2019) pastes a square whose share of
    the area is Beta(cutmix, cutmix); with both, each batch takes one of them. One draw for the batch, from its first sample.
    """
    import numpy as np

    at = _COLUMNS["mix"]
    first = draws[0].double().cpu()
    random = np.random.Generator(np.random.Philox(key=np.array([int(first[at] * 2**24), int(first[at + 1] * 2**24)], np.uint64)))
    cut = cutmix > 0 and (mixup == 0 or random.random() < 0.5)
    keep = float(random.beta(*(2 * (cutmix if cut else mixup,))))
    other, size = inputs.roll(1, 0), inputs.shape[-1]
    if cut:
        side = round(size * (1 - keep) ** 0.5)
        top, left = random.integers(0, size - side + 1, 2)
        inputs = inputs.clone()
        inputs[:, :, top : top + side, left : left + side] = other[:, :, top : top + side, left : left + side]
        keep = 1 - side * side / (size * size)
    else:
        inputs = torch.lerp(other, inputs, keep)
    hot = torch.nn.functional.one_hot(targets, classes).float()
    return inputs, keep * hot + (1 - keep) * hot.roll(1, 0)
