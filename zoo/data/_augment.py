"""Augmentation of whole batches on the device: from uint8 (N, H, W, 3) to normalised (N, 3, H, W) in channels_last memory.

An op is written ``name`` or ``name:number``:

- ``crop:4`` pads by reflection and crops at a random position (He et al. 2015, "Deep residual learning", section 4.2);
- ``rcrop:224`` crops a random square of that side; without a number, 7/8 of the stored side;
- ``flip`` mirrors half of the images;
- ``altflip`` mirrors half of the images in the first epoch, the others in the next, and so on (Jordan 2024, section 3.6);
- ``colour:40`` scales brightness, contrast and saturation by up to 40 % each;
- ``cutout:8`` sets a random square of that side to the mean (DeVries and Taylor 2017);
- ``trivial`` is TrivialAugment (:mod:`zoo.data._trivial`): one of fourteen ops of random strength per image;
- ``v2:NAME`` or ``v2:NAME(key=value)`` is a transform of torchvision.transforms.v2. It runs image by image, with its own
random numbers: milliseconds per batch of 128, ten times as long as the others.

Every op reads its own columns of a sample's uniform draws, so adding an op does not change the draws of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from zoo import sampling
from zoo.data._ops import parse, transform_of
from zoo.data._trivial import trivial
from zoo.errors import UsageError

DRAWS = 18
"""Columns of draws per sample."""
_COLUMN = {"crop": 0, "rcrop": 0, "flip": 2, "cutout": 3, "mix": 5, "colour": 9, "v2": 12, "trivial": 14, "partner": 17}


def draws(seed: int, epoch: int, order: np.ndarray, n: int, ops: Sequence[str]) -> np.ndarray:
    """(len(order), DRAWS) uniform in [0, 1): what :func:`augment` needs for the samples ``order``, all below ``n``, in an epoch.

    With ``altflip``, the column of flips moves by 1/2 from epoch to epoch.
    """
    drawn = sampling.slots(seed, epoch, order, n, DRAWS)
    if any(text.startswith("altflip") for text in ops):
        at = _COLUMN["flip"]
        drawn[:, at] = (sampling.uniforms(seed, 0, n, at + 1)[order, at] + epoch % 2 / 2) % 1
    return drawn


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32, size: int | None = None
) -> Tensor:
    """(x / 255 - mean) / std of uint8 (N, H, W, 3), centre-cropped to ``size`` if larger; (N, 3, H, W) channels_last."""
    return _scale(_centre(images, size).float(), mean, std, dtype)


def augment(
    images: Tensor,
    draws: Tensor,
    ops: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
) -> Tensor:
    """Apply ``ops``, then normalise; ``draws`` is (N, DRAWS) uniform in [0, 1).

    Geometry, ``trivial`` and ``v2`` are applied in the order given, then ``colour``, then ``cutout``. Images that are still
    larger than ``size`` are centre-cropped.

    Raises:
        UsageError: an op that is unknown, malformed, or does not fit the images.
    """
    parsed = [parse(text) for text in ops]
    where = _Where(images)
    for name, argument in parsed:
        if name in _MOVES:
            _MOVES[name](where, draws, int(argument))
        elif name == "trivial":
            at = _COLUMN["trivial"]
            where = _Where(trivial(where.pixels(), draws[:, at : at + 3]))
        elif name == "v2":
            where = _Where(_torchvision(where.pixels(), draws, argument))
    values = _centre(where.pixels(), size).float()
    for name, argument in parsed:
        if name == "colour":
            values = _colour(values, draws, int(argument))
    inputs = _scale(values, mean, std, dtype)
    for name, argument in parsed:
        if name == "cutout":
            inputs = _cutout(inputs, draws, int(argument))
    return inputs


def _scale(values: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Float (N, H, W, 3) of 0 to 255 to normalised (N, 3, H, W); one row of pixels at a time, so that the inner loop is long."""
    n, height, width, _ = values.shape
    scale = torch.tensor([1 / (255 * s) for s in std], device=values.device).repeat(width)
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=values.device).repeat(width)
    scaled = torch.addcmul(shift, values.reshape(n * height, width * 3), scale)
    return scaled.to(dtype).view(n, height, width, 3).permute(0, 3, 1, 2)


def _centre(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[1] <= size:
        return images
    top = (images.shape[1] - size) // 2
    return images[:, top : top + size, top : top + size]


class _Where:
    """Source row and column of each pixel; moves compose these maps, and the pixels are read once."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.rows = self.columns = torch.arange(images.shape[1], device=images.device).expand(len(images), -1)
        self.moved = False

    @property
    def side(self) -> int:
        return self.rows.shape[1]

    def pixels(self) -> Tensor:
        """(N, side, side, 3) uint8. One index_select of 3-byte rows: 50 times as fast as indexing by three tensors."""
        if not self.moved:
            return self.images
        n, side = self.rows.shape
        stored = self.images.shape[1]
        first = torch.arange(n, device=self.images.device)[:, None] * stored
        flat = (first + self.rows)[:, :, None] * stored + self.columns[:, None, :]
        return self.images.reshape(-1, 3).index_select(0, flat.reshape(-1)).view(n, side, side, 3)


def _offsets(draws: Tensor, column: int, span: int) -> Tensor:
    """(N, 1) whole numbers in 0 .. span-1."""
    return (draws[:, column : column + 1] * span).long().clamp_(max=span - 1)


def _crop(where: _Where, draws: Tensor, pad: int) -> None:
    side = where.side
    if pad >= side:
        raise UsageError(f"augmentation crop:{pad} does not fit images of {side} pixels; use a smaller number")
    reach = torch.arange(-pad, side + pad, device=draws.device).abs()
    mirror = torch.where(reach >= side, 2 * (side - 1) - reach, reach)
    steps, at = torch.arange(side, device=draws.device), _COLUMN["crop"]
    where.rows = where.rows.gather(1, mirror[_offsets(draws, at, 2 * pad + 1) + steps])
    where.columns = where.columns.gather(1, mirror[_offsets(draws, at + 1, 2 * pad + 1) + steps])
    where.moved = True


def _rcrop(where: _Where, draws: Tensor, size: int) -> None:
    size = size or round(where.side * 7 / 8)
    span, at = where.side - size + 1, _COLUMN["rcrop"]
    if span < 1:
        raise UsageError(f"augmentation rcrop:{size} does not fit images of {where.side} pixels; use rcrop")
    steps = torch.arange(size, device=draws.device)
    where.rows = where.rows.gather(1, _offsets(draws, at, span) + steps)
    where.columns = where.columns.gather(1, _offsets(draws, at + 1, span) + steps)
    where.moved = True


def _flip(where: _Where, draws: Tensor, _: int) -> None:
    at = _COLUMN["flip"]
    where.columns = torch.where(draws[:, at : at + 1] < 0.5, where.columns.flip(1), where.columns)
    where.moved = True


_MOVES: dict[str, Callable[[_Where, Tensor, int], None]] = {"crop": _crop, "rcrop": _rcrop, "flip": _flip, "altflip": _flip}


def _colour(values: Tensor, draws: Tensor, percent: int) -> Tensor:
    """Brightness, contrast and saturation of float (N, H, W, 3) in 0 to 255, each by a factor in 1 +- percent / 100."""
    at = _COLUMN["colour"]
    bright, contrast, saturation = (1 + (2 * draws[:, at : at + 3] - 1) * (percent / 100)).T[..., None, None, None]
    grey = torch.tensor([0.299, 0.587, 0.114], device=values.device)  # luma of ITU-R BT.601
    values = (values * bright).clamp_(0, 255)
    mean = (values @ grey).mean((1, 2))[:, None, None, None]
    values = torch.lerp(mean, values, contrast).clamp_(0, 255)
    return torch.lerp((values @ grey)[..., None], values, saturation).clamp_(0, 255)


def _cutout(inputs: Tensor, draws: Tensor, side: int) -> Tensor:
    at, size = _COLUMN["cutout"], inputs.shape[-1]
    steps = torch.arange(size, device=inputs.device)
    start = [_offsets(draws, column, size) - side // 2 for column in (at, at + 1)]
    rows, columns = ((steps >= first) & (steps < first + side) for first in start)
    return inputs.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _torchvision(images: Tensor, draws: Tensor, text: str) -> Tensor:
    transform, at = transform_of(text), _COLUMN["v2"]
    seeds = (draws[:, at : at + 2].double() * 2**24).long().tolist()
    devices = [images.device] if images.device.type == "cuda" else []
    changed = []
    with torch.random.fork_rng(devices):
        for image, (high, low) in zip(images.permute(0, 3, 1, 2), seeds):
            torch.manual_seed(high << 24 | low)
            changed.append(transform(image))
    sides = {tuple(image.shape) for image in changed}
    if len(sides) != 1 or changed[0].dtype != torch.uint8 or changed[0].shape[1] != changed[0].shape[2]:
        raise UsageError(f"augmentation v2:{text[:40]} must return square uint8 images of one size; use another transform")
    return torch.stack(changed).permute(0, 2, 3, 1).contiguous()


def mix(
    inputs: Tensor, targets: Tensor, classes: int, draws: Tensor, partners: tuple[Tensor, Tensor] | None = None,
    *, mixup: float = 0.0, cutmix: float = 0.0, prob: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Blend each sample with a partner: inputs (N, 3, H, W) and soft targets (N, classes) float32.

    The partners are inputs and targets of the same shapes; without them, each sample's neighbour in the batch.

    Mixup (Zhang et al. 2018) weights the two by Beta(mixup, mixup), cutmix (Yun et al. 2019) pastes a rectangle whose share
    of the area is Beta(cutmix, cutmix) before clipping at the border; with both, each applies to half of the mixed samples.
    Each sample has its own draws and is mixed with probability ``prob``.
    """
    if mixup <= 0 and cutmix <= 0:
        return inputs, torch.nn.functional.one_hot(targets, classes).float()
    at = _COLUMN["mix"]
    choice, share, y, x = draws[:, at : at + 4].T
    mixed = choice < prob
    cut = mixed & (cutmix > 0) & ((choice < prob / 2) | (mixup <= 0))
    alpha = torch.where(cut | (mixup <= 0), cutmix, mixup)
    keep = torch.where(mixed, _beta(alpha, share), 1.0)
    box = _boxes(keep, y, x, inputs.shape[-1]) & cut[:, None, None]
    keep = torch.where(cut, 1 - box.float().mean((1, 2)), keep)
    other, labels = (inputs.roll(1, 0), targets.roll(1, 0)) if partners is None else partners
    blend = torch.where(cut, 1.0, keep).to(inputs.dtype)[:, None, None, None]
    blended = torch.where(box[:, None], other, torch.lerp(other, inputs, blend))
    hot, hot_other = (torch.nn.functional.one_hot(each, classes).float() for each in (targets, labels))
    return blended.contiguous(memory_format=torch.channels_last), torch.lerp(hot_other, hot, keep[:, None])


def partner(draws: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Positions (N,) below len(odds), drawn with probabilities proportional to ``odds`` (n,) by the ``draws`` (N, DRAWS) of a batch."""
    reach = np.cumsum(odds, dtype=np.float64)
    return np.searchsorted(reach, draws[:, _COLUMN["partner"]].astype(np.float64) * reach[-1], side="right")


def _beta(alpha: Tensor, uniform: Tensor) -> Tensor:
    """Samples of Beta(alpha, alpha), (N,), by the inverse of its distribution function."""
    from scipy.special import betaincinv

    a = alpha.double().cpu().numpy()
    return torch.from_numpy(betaincinv(a, a, uniform.double().cpu().numpy())).to(uniform)


def _boxes(keep: Tensor, y: Tensor, x: Tensor, size: int) -> Tensor:
    """(N, size, size) bool: rectangles around (y, x) of area (1 - keep) before clipping (Yun et al. 2019, eq. 2)."""
    half = 0.5 * size * (1 - keep).sqrt()
    steps = torch.arange(size, device=keep.device) + 0.5
    rows, columns = (((steps - size * centre[:, None]).abs() < half[:, None]) for centre in (y, x))
    return rows[:, :, None] & columns[:, None, :]
