"""TrivialAugment, wide (Müller and Hutter 2021, table 1 and algorithm 1), over a whole batch: one op of fourteen per image.

The ops and their ranges are those of torchvision's ``TrivialAugmentWide``, but shears are relative to the centre, and pixels
from outside the image are grey, as in Cubuk et al. 2019 for images of 32 pixels. Images with the same op are processed
together, about 20 times as fast as one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LEVELS = 31
GREY = 128
"""Value of pixels from outside the image."""


def trivial(images: Tensor, draws: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to the same; ``draws`` (N, 3) in [0, 1) choose op, strength and sign."""
    kind = _whole(draws[:, 0], len(OPS))
    strength = _whole(draws[:, 1], LEVELS) / (LEVELS - 1)
    sign = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
    changed = images.clone()
    for number, op in enumerate(OPS):
        rows = (kind == number).nonzero().squeeze(1)
        if op is not None and len(rows):
            changed[rows] = op(images[rows], strength[rows], sign[rows])
    return changed


def _whole(draw: Tensor, n: int) -> Tensor:
    return (draw * n).long().clamp_(max=n - 1)


def _moved(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Pixel (x, y) from the nearest to ``matrix`` (n, 2, 2) times (x, y) plus ``shift`` (n, 2), counted from the centre."""
    n, side = images.shape[:2]
    steps = torch.arange(side, device=images.device, dtype=torch.float32) - (side - 1) / 2
    x, y = steps[None, None, :], steps[None, :, None]
    columns, rows = (
        (matrix[:, i, 0, None, None] * x + matrix[:, i, 1, None, None] * y + shift[:, i, None, None] + (side - 1) / 2)
        .round()
        .long()
        for i in (0, 1)
    )  # (n, H, W)
    outside = (rows < 0) | (rows >= side) | (columns < 0) | (columns >= side)
    first = torch.arange(n, device=images.device)[:, None, None] * side
    flat = (first + rows.clamp(0, side - 1)) * side + columns.clamp(0, side - 1)
    taken = images.reshape(-1, 3).index_select(0, flat.reshape(-1)).view(images.shape)
    return taken.masked_fill_(outside[..., None], GREY)


def _shear(axis: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def op(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
        matrix = torch.eye(2, device=images.device).repeat(len(images), 1, 1)
        matrix[:, axis, 1 - axis] = 0.99 * strength * sign
        return _moved(images, matrix, torch.zeros(len(images), 2, device=images.device))

    return op


def _translate(axis: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def op(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
        shift = torch.zeros(len(images), 2, device=images.device)
        shift[:, axis] = -(32 * strength).floor() * sign
        return _moved(images, torch.eye(2, device=images.device).repeat(len(images), 1, 1), shift)

    return op


def _rotate(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    angle = strength * sign * math.radians(135)
    rows = [torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)]
    return _moved(images, torch.stack(rows, 1), torch.zeros(len(images), 2, device=images.device))


def _blend(images: Tensor, other: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """other + factor (image - other) with a factor in 1 +- 0.99, as uint8."""
    factor = (1 + 0.99 * strength * sign)[:, None, None, None]
    return (images * factor + other * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, (n, H, W, 1), cut to whole numbers."""
    return (images.float() @ torch.tensor([0.2989, 0.587, 0.114], device=images.device)).floor_()[..., None]


def _brightness(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, torch.zeros((), device=images.device), strength, sign)


def _saturation(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, _grey(images), strength, sign)


def _contrast(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), strength, sign)


def _sharpness(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Blend with the image smoothed by 3x3 ones and a 5 in the middle; the border stays."""
    values = images.float()
    middle = values[:, 1:-1, 1:-1]
    total = 4 * middle
    for top in range(3):
        for left in range(3):
            total = total + values[:, top : top + middle.shape[1], left : left + middle.shape[2]]
    smooth = values.clone()
    smooth[:, 1:-1, 1:-1] = (total / 13).round_()
    return _blend(images, smooth, strength, sign)


def _posterize(images: Tensor, strength: Tensor, _: Tensor) -> Tensor:
    """Keep the first 8 to 2 bits."""
    dropped = (strength * 6).round().to(torch.uint8)[:, None, None, None]
    return images >> dropped << dropped


def _solarize(images: Tensor, strength: Tensor, _: Tensor) -> Tensor:
    """Invert what reaches a threshold of 255 to 0."""
    bound = (255 * (1 - strength))[:, None, None, None]
    return torch.where(images >= bound, 255 - images, images)


def _autocontrast(images: Tensor, *_: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.autocontrast(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _equalize(images: Tensor, *_: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.equalize(images.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)


OPS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor] | None, ...] = (
    None, _shear(0), _shear(1), _translate(0), _translate(1), _rotate, _brightness, _saturation, _contrast, _sharpness, _posterize,
    _solarize, _autocontrast, _equalize,
)  # fmt: skip
"""None does not change the image."""
